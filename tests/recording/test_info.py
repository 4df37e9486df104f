from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flannel_pl.__main__ import main
from flannel_pl.analysis.reporting.background import background_of
from flannel_pl.errors import UserError
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.info import describe_recording, info_verb
from flannel_pl.recording.reader import open_recording
from tests.recording.recording_samples import make_experiment, make_schema, make_writer, write_rows


def facts(text: str) -> list[str]:
    """Returns the lines with single spaces, to compare content and not columns."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_gathered_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_experiment(tmp_path / "flannel3", swept=lambda run: {"model.weight_decay": 0.5 * run})
    gather(paths.folder)
    info_verb(paths.folder)
    lines = facts(capsys.readouterr().out)
    num_bytes = paths.gathered.stat().st_size
    for line in (
        str(paths.folder),
        f"size {num_bytes:,} bytes ({num_bytes / 1024:.2f} KiB)",
        "schema 2",
        "runs 3",
        "run 2 seed 44, model.weight_decay 1.0, 7 rows (steps 0 to 6)",
        "Tensors of runs 0, 1, 2 x 3 runs",
        "embeddings bfloat16 (7, 30, 4) 1.64 KiB token embedding after the step",
        "checksums uint64 (7, 10) 560 bytes",
        "losses_f32 float32 (7) 28 bytes loss at the weights of the step before",
        "n_runs int64 () 8 bytes = 3",
        "learning_rate float32 () 4 bytes = 0.001",
        "live_mask bool (30) 30 bytes",
        "trainer.precision bf16-mixed",
        "model.param_dtype bfloat16",
        "data.batch_size 32",
        "git.commit abc",
        "git.dirty False",
        "torch 2.13",
    ):
        assert line in lines
    assert sum(line.startswith("embeddings") for line in lines) == 1


def test_what_was_swept_is_said_to_be(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "flannel3", swept=lambda run: {"model.init_scale": 0.01 * (run + 1)})
    lines = facts(describe_recording(gather(paths.folder)))
    assert "init_scale float32 () 4 bytes = swept" in lines
    assert "model.init_scale swept" in lines
    assert "learning_rate float32 () 4 bytes = 0.001" in lines
    assert "model.learning_rate 0.001" in lines


def test_what_is_not_utf8_is_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = make_writer(tmp_path, metadata={"run": 0, "seed": None, "provenance": {"command": "a\udcff"}})
    write_rows(writer, range(7))
    writer.finish()
    assert main(["info", str(tmp_path)]) == 0
    assert "command a\\udcff" in facts(capsys.readouterr().out)


def test_a_shard_with_a_subset_of_tokens(tmp_path: Path) -> None:
    writer = make_writer(
        tmp_path, schema=make_schema(num_tokens=3), static={"recorded_tokens": np.array([3, 5, 9])}
    )
    write_rows(writer, range(7))
    writer.finish()
    lines = facts(describe_recording(tmp_path))
    assert "run 0 seed 42, 7 rows (steps 0 to 6), 3 tokens of the vocabulary" in lines
    assert "recorded_tokens int64 (3) 24 bytes" in lines
    assert "Tensors of run 0" in lines


def test_shards_and_index(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "flannel3", gather="index")
    for text in (describe_recording(paths.folder), describe_recording(gather(paths.folder))):
        lines = facts(text)
        assert "schema 2" in lines
        assert "Tensors of runs 0, 1, 2 x 3 runs" in lines
        assert "git.commit abc" in lines
        assert any(line.startswith("size ") and line.endswith("in 4 files") for line in lines)


def test_runs_of_different_shape_are_shown_apart(tmp_path: Path) -> None:
    save_file({"run_0_losses": np.zeros(3), "run_1_losses": np.zeros(4)}, tmp_path / "x.safetensors")
    lines = facts(describe_recording(tmp_path / "x.safetensors"))
    assert "Tensors of run 0" in lines
    assert "losses float64 (4) 32 bytes" in lines


def test_the_notebooks_own_file(tmp_path: Path) -> None:
    path = tmp_path / "1.20c_flannel_3.safetensors"
    save_file(
        {
            "run_0_recorded_steps": np.arange(5),
            "base_seed": np.array(42),
            "init_scale": np.array(0.02, np.float32),
        },
        path,
    )
    lines = facts(describe_recording(path))
    assert "schema none, not written by flannel-pl" in lines
    assert "run 0 seed 42, 5 rows (steps 0 to 4)" in lines
    assert "init_scale float32 () 4 bytes = 0.02" in lines


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no"):
        describe_recording(tmp_path / "nowhere.safetensors")


def test_what_runs_differ_in_is_said_of_all_of_them(tmp_path: Path) -> None:
    for index in (0, 1):
        provenance = {"device": f"cuda:{index}", "python": "3.12"}
        metadata = {"run": index, "seed": index, "swept": {}, "config": {}, "provenance": provenance}
        writer = make_writer(tmp_path / f"run_{index}", metadata=metadata)
        write_rows(writer, range(writer.schema.num_rows))
        writer.finish()
    lines = facts(describe_recording(tmp_path))
    assert "device differs: cuda:0, cuda:1" in lines
    assert "python 3.12" in lines
    with open_recording(tmp_path) as recording:  # which the report shows
        shown = background_of(recording).provenance
    assert shown == (("python", "3.12"), ("device", "differs: cuda:0, cuda:1"))


def test_what_an_earlier_version_may_have_recorded_otherwise_is_said(tmp_path: Path) -> None:
    doubts = [
        "of an earlier version: embeddings, grads, momentum, variance may be rounded",
        "of an earlier version: learning_rates may be those of the optimizer's first parameter group",
    ]
    own = dict.fromkeys(("embeddings", "grads", "momentum", "variance", "logits"), "bfloat16")
    shared = {"run": 0, "seed": 42, "swept": {}, "schema": 1}
    cases: list[tuple[str, dict[str, Any], bool]] = [
        ("old, from Python", {}, True),
        ("old, by fit", {"metadata": {**shared, "config": {"model": {"param_dtype": "bfloat16"}}}}, False),
        ("new, from Python", {"schema": make_schema(own_dtypes=own)}, False),
        ("the loss only", {"schema": make_schema(tensors=("losses",))}, False),
    ]
    for name, changes, is_doubted in cases:
        writer = make_writer(tmp_path / name, **{"metadata": shared, **changes})
        write_rows(writer, range(7))
        writer.finish()
        found = [
            line for line in facts(describe_recording(tmp_path / name)) if "of an earlier version" in line
        ]
        assert found == (doubts if is_doubted else []), name


FLOAT32, MIXED = {"param_dtype": "float32"}, {"param_dtype": "bfloat16"}
OF_WEIGHTS = ("embeddings", "grads", "momentum", "variance")


@pytest.mark.parametrize(
    ("model", "precision", "own"),
    [
        (FLOAT32, "32-true", dict.fromkeys((*OF_WEIGHTS, "logits"), "float32")),
        (FLOAT32, 32, dict.fromkeys((*OF_WEIGHTS, "logits"), "float32")),
        (FLOAT32, None, dict.fromkeys((*OF_WEIGHTS, "logits"), "float32")),
        (FLOAT32, "bf16-mixed", dict.fromkeys(OF_WEIGHTS, "float32")),
        (FLOAT32, "16-mixed", dict.fromkeys(OF_WEIGHTS, "float32") | {"logits": "float16"}),
        (MIXED, "bf16-mixed", {}),
        (MIXED, "32-true", {}),  # as it was trained before it was refused
    ],
)
def test_what_an_earlier_version_has_rounded_follows_from_its_config(
    tmp_path: Path, model: dict[str, str], precision: Any, own: dict[str, str]
) -> None:
    config = {"model": model, "trainer": {"precision": precision}}
    writer = make_writer(tmp_path, metadata={"run": 0, "seed": 1, "swept": {}, "schema": 1, "config": config})
    write_rows(writer, range(7))
    writer.finish()
    rounded = [f"rounded: {', '.join(f'{name} from {dtype} to bfloat16' for name, dtype in own.items())}"]
    assert [line for line in facts(describe_recording(tmp_path)) if line.startswith("rounded: ")] == (
        rounded if own else []
    )
    with open_recording(tmp_path) as recording:  # which the report warns of
        assert background_of(recording).rounding == (dict.fromkeys(rounded, (0,)) if own else {})


@pytest.mark.parametrize("asked", [None, "float64"])
def test_a_loss_of_float64_is_said_to_be_rounded(tmp_path: Path, asked: str | None) -> None:
    own = dict.fromkeys((*OF_WEIGHTS, "logits"), "float64")
    dtypes = {} if asked is None else {"losses": asked}
    writer = make_writer(tmp_path, schema=make_schema(own_dtypes=own, dtypes=dtypes))
    write_rows(writer, range(7))
    writer.finish()
    said = "rounded: losses_f32 from float64 to float32, if the loss was float64 as the weights were"
    assert (said in facts(describe_recording(tmp_path))) == (asked is None)
