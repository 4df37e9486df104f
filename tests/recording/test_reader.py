import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats import lazy
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.integrity.findings import describe_part
from flannel_pl.recording.reader import open_recording
from tests.recording.recording_samples import (
    bits,
    make_experiment,
    make_schema,
    make_writer,
    run_metadata,
    write_rows,
)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPaths:
    paths = make_experiment(tmp_path_factory.mktemp("runs") / "flannel3")
    gather(paths.folder)
    return paths


@pytest.fixture(scope="module")
def shards_only(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPaths:
    return make_experiment(tmp_path_factory.mktemp("runs") / "flannel3")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPaths:
    paths = make_experiment(tmp_path_factory.mktemp("runs") / "flannel3", gather="index")
    gather(paths.folder)
    return paths


def test_every_form_of_a_recording_reads_alike(
    experiment: ExperimentPaths, shards_only: ExperimentPaths, indexed: ExperimentPaths
) -> None:
    stock = load_file(experiment.gathered)
    forms = (experiment.gathered, experiment.folder, shards_only.folder, indexed.folder, indexed.index)
    for path in forms:
        with open_recording(path) as recording:
            assert recording.runs == (0, 1, 2)
            assert recording.seeds == (42, 43, 44)
            assert len(recording) == 3
            assert [run.index for run in recording] == [0, 1, 2]
            assert {f"run_{run.index}_{name}" for run in recording for name in run.names} == {
                key for key in stock if key.startswith("run_")
            }
            for run in recording:
                assert run.num_rows == 7
                assert run.steps.tolist() == list(range(7))
                for name in run.names:
                    expected = stock[f"run_{run.index}_{name}"]
                    assert run.tensor(name).shape == expected.shape
                    assert run.tensor(name).dtype == str(expected.dtype)
                    assert bits(run.tensor(name)[:]) == expected.tobytes()
            assert recording.masks["dead_indices"].tolist() == list(range(0, 30, 3))


def test_gathered_scalars_and_metadata(experiment: ExperimentPaths) -> None:
    with open_recording(str(experiment.folder)) as recording:
        assert recording.scalars == {
            **{"n_runs": 3, "base_seed": 42, "n_steps": 6, "n_live": 20, "n_dead": 10},
            **{"init_scale": pytest.approx(0.02), "learning_rate": pytest.approx(1e-3)},
            **{"weight_decay": pytest.approx(0.1), "adam_beta1": pytest.approx(0.9)},
            "adam_beta2": pytest.approx(0.999),
        }
        assert recording.metadata["config"]["model"]["param_dtype"] == "bfloat16"
        assert set(recording.masks) == {
            *("live_mask", "dead_mask", "live_indices", "dead_indices", "token_occurrence_counts")
        }


def test_one_shard_says_which_run_it_is(shards_only: ExperimentPaths) -> None:
    for path in (shards_only.run(2).recording, shards_only.run(2).folder):
        with open_recording(path) as recording:
            assert (recording.runs, recording.seeds) == ((2,), (44,))
            assert recording.run(2).metadata["config"]["data"]["batch_size"] == 32


CONTENT = np.random.default_rng(0).standard_normal((20, 30, 4)).astype(BFLOAT16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the notebook writes it: its keys, no metadata."""
    path = tmp_path_factory.mktemp("notebook") / "1.20c_flannel_3.safetensors"
    content = {f"run_{i}_{name}": x for i in (0, 1) for name, x in _run(i).items()}
    scalars = {"n_runs": np.int64(2), "base_seed": np.int64(42), "init_scale": np.float32(0.02)}
    save_file(content | {key: np.array(value) for key, value in scalars.items()}, path)
    return path


def _run(index: int) -> dict[str, Any]:
    losses = np.full(20, np.nan).astype(BFLOAT16)
    return {"recorded_steps": np.arange(20), "embeddings": CONTENT + BFLOAT16.type(index), "losses": losses}


def test_the_notebooks_own_file_opens(plain: Path) -> None:
    with open_recording(plain) as recording:
        assert (recording.runs, recording.seeds, recording.metadata) == ((0, 1), (42, 43), {})
        assert recording.scalars["n_runs"] == 2
        assert bits(recording.run(0).embeddings[7]) == CONTENT[7].tobytes()
        assert np.isnan(recording.run(1).losses[0])


def test_a_file_of_one_run_without_prefix_opens(tmp_path: Path) -> None:
    save_file(_run(0) | {"n_steps": np.array(19)}, tmp_path / "flannel_1.safetensors")
    with open_recording(tmp_path / "flannel_1.safetensors") as recording:
        assert (recording.runs, recording.seeds) == ((0,), (None,))
        assert recording.run(0).names == ("recorded_steps", "embeddings", "losses")
        assert recording.scalars == {"n_steps": 19}


MASK = np.arange(30) % 4 == 0
EQUAL_TO_NUMPY = [
    *(3, -1, np.int64(4), slice(None), slice(2, 9), slice(-5, None), slice(None, None, -3), slice(5, 2)),
    *([1, 2, 9], [9, 2, -1, 2], np.array([5, 5, 1]), np.arange(20) > 12, [], [True] + [False] * 19),
    *((slice(10, 20), [1, 2, 3]), (slice(10, 20), MASK), (slice(1, 15, 2), MASK, slice(0, 2)), (3, MASK)),
    *(
        (3, 4),
        (3, 4, 1),
        (..., 1),
        (slice(2, 4), ..., slice(None, None, -1)),
        (..., 1, 2),
        (slice(0, 0), MASK),
    ),
    ([4, 0, 7], slice(3, 9)),
]


@pytest.mark.parametrize("key", EQUAL_TO_NUMPY, ids=str)
@pytest.mark.parametrize("block_bytes", [1, 600, 2**26])
def test_indexing_is_that_of_numpy(
    plain: Path, monkeypatch: pytest.MonkeyPatch, key: Any, block_bytes: int
) -> None:
    monkeypatch.setattr(lazy, "BLOCK_BYTES", block_bytes)
    expected = np.asarray(CONTENT[key])
    for framework in ("np", "pt"):
        with open_recording(plain, framework=framework) as recording:
            got = recording.run(0).embeddings[key]
        assert tuple(got.shape) == expected.shape
        assert bits(got) == expected.tobytes()


def test_several_arrays_select_a_grid(plain: Path) -> None:
    with open_recording(plain) as recording:
        got = recording.run(0).embeddings[[3, 1], MASK, [0, 2, 3]]
    assert got.tobytes() == CONTENT[np.ix_([3, 1], MASK, [0, 2, 3])].tobytes()


@pytest.mark.parametrize(
    "key", [20, -21, (0, 30), [20], (0, 0, 0, 0), None, np.zeros((2, 2), int), (0, [99])]
)
def test_what_is_out_of_range_is_an_index_error(plain: Path, key: Any) -> None:
    with open_recording(plain) as recording, pytest.raises(IndexError):
        recording.run(0).embeddings[key]


def test_torch_tensors(plain: Path) -> None:
    with open_recording(plain, framework="pt") as recording:
        row = recording.run(0).embeddings[2]
        assert isinstance(row, torch.Tensor)
        assert row.dtype == torch.bfloat16
        assert recording.run(0).embeddings[2, 3, 1].shape == ()
        assert recording.run(0).recorded_steps[:].dtype == torch.int64
        row.zero_()
        assert recording.run(0).embeddings[2].abs().sum() > 0


def test_stream_reads_the_whole_tensor(plain: Path) -> None:
    with open_recording(plain) as recording:
        embeddings = recording.run(0).embeddings
        chunks = list(embeddings.stream(max_bytes=3 * embeddings.row_bytes + 1))
        assert [start for start, _ in chunks] == [0, 3, 6, 9, 12, 15, 18]
        assert b"".join(chunk.tobytes() for _, chunk in chunks) == CONTENT.tobytes()
        assert len(list(embeddings.stream(max_bytes=1))) == 20
        assert np.asarray(embeddings).tobytes() == CONTENT.tobytes()


def test_another_framework_is_refused(plain: Path) -> None:
    with pytest.raises(UserError, match=r"framework is 'tf', expected 'torch' \(or 'pt': tensors\)"):
        open_recording(plain, framework="tf")  # type: ignore[arg-type]


def test_a_run_takes_its_masks_from_the_experiments_folder(
    shards_only: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shards_only.run(1)
    monkeypatch.chdir(run.folder)
    for path in (run.folder, run.recording, Path(), Path(run.recording.name), Path("../run_2")):
        with open_recording(path) as recording:
            assert recording.masks["dead_indices"].tolist() == list(range(0, 30, 3))


def test_where_masks_are_is_said_if_they_are_not_here(plain: Path, tmp_path: Path) -> None:
    elsewhere = r"has no masks: .* gathered file and in its live_dead_tokens.safetensors"
    cases = [(plain, elsewhere)]
    made: dict[str, tuple[dict[str, Any], str]] = {
        "by fit": ({"config": {}}, elsewhere),
        "of others": (
            {"config": {"data": {"class_path": "my.D"}}},
            r"has no masks: .* was trained on my\.D\. ",
        ),
        "from Python": ({}, r"has no masks: .* from Python. Which tokens are meant can only be said"),
    }
    for name, (more, expected) in made.items():
        writer = make_writer(tmp_path / name, metadata={"run": 0, "seed": 42, "swept": {}, **more})
        write_rows(writer, range(7))
        writer.finish()
        cases.append((tmp_path / name, expected))
    for path, expected in cases:
        with open_recording(path) as recording, pytest.raises(UserError, match=expected):
            _ = recording.masks


@pytest.mark.parametrize("how", ["renamed", "linked"])
def test_a_folder_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    paths = make_experiment(tmp_path / "flannel3", num_runs=2)
    other = tmp_path / "elsewhere"
    if how == "renamed":
        paths.folder.rename(other)
    else:
        other.symlink_to(paths.folder)
    assert gather(other) == other / "flannel3.safetensors"
    (other / "run_0" / "recording.safetensors").unlink()
    monkeypatch.chdir(other)
    for folder in (other, Path()):
        with open_recording(folder) as recording:
            assert recording.runs == (0, 1)


def test_a_missing_run_and_a_missing_tensor_are_named(plain: Path) -> None:
    with open_recording(plain) as recording:
        with pytest.raises(IndexError, match=r"flannel_3.safetensors has no run 2; it has 0, 1"):
            recording.run(2)
        with pytest.raises(
            AttributeError, match=r"run 1 has no 'grads'; it has recorded_steps, embeddings, losses"
        ):
            _ = recording.run(1).grads


def test_nothing_is_read_after_closing(plain: Path) -> None:
    recording = open_recording(plain)
    embeddings = recording.run(0).embeddings
    recording.close()
    recording.close()
    with pytest.raises(ValueError, match="is closed"):
        embeddings[0]


def test_who_began_a_recording_goes_on_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    make_writer(folder).abort("killed")
    partial = folder / "recording.partial"
    for name, said in (
        (None, "made one elsewhere, since none lies beside it; else record into another folder. What is"),
        ("checkpoint-2-0123456789abcdef.ckpt", "ckpt_path='{}')"),
    ):
        if name is not None:
            (folder / name).touch()
        expected = said.format(folder / str(name))
        for path in (partial, folder):
            with pytest.raises(UserError) as refused:
                open_recording(path)
            assert expected in str(refused.value)
            assert "flannel-pl fit" not in str(refused.value)
        (part,) = verify(folder).parts
        assert expected in "\n".join(describe_part(part))
        assert "flannel-pl fit" not in "\n".join(describe_part(part))


def test_an_unfinished_recording_is_refused(tmp_path: Path) -> None:
    by_fit = {"run": 0, "seed": 42, "swept": {}, "config": {}}
    make_writer(tmp_path / "exp" / "run_0", metadata=by_fit).abort("killed")
    with pytest.raises(
        UserError, match=r"recording.partial is not finished: .* fit begins this run anew, since it has no"
    ):
        open_recording(tmp_path / "exp/run_0/recording.partial")
    for folder in (tmp_path / "exp", tmp_path / "exp/run_0"):
        with pytest.raises(UserError, match=r"no finished recording; .*partial is begun but not finished"):
            open_recording(folder)
    with pytest.raises(UserError, match=r"holds no finished recording. flannel-pl fit makes"):
        open_recording(tmp_path)
    with pytest.raises(UserError, match=r"There is no .*typo.safetensors; expected a recording"):
        open_recording(tmp_path / "typo.safetensors")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"hello, world, this is text")
    with pytest.raises(RunError, match=r"x.safetensors is not a complete safetensors file"):
        open_recording(tmp_path / "x.safetensors")
    index = tmp_path / "x.safetensors.index.json"
    for text in ("{", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {"a": 3}}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(RunError, match=r"index.json is no readable index: .* Gather again"):
            open_recording(index)
    save_file({"a": np.zeros(2)}, tmp_path / "a.safetensors")
    index.write_text('{"weight_map": {"b": "a.safetensors"}}')
    with pytest.raises(RunError, match=r"index.json expects b in .*a.safetensors, which lacks it"):
        open_recording(index)


def test_a_file_cut_short_while_it_is_open(plain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(plain.read_bytes())
    with open_recording(copy) as recording:
        copy.write_bytes(plain.read_bytes()[:3000])
        with pytest.raises(RunError, match=r"copy.safetensors was cut short while it was read"):
            recording.run(1).embeddings[:]


def test_two_files_for_one_run_are_refused(tmp_path: Path) -> None:
    for folder in ("run_0", "run_1"):
        (tmp_path / folder).mkdir()
        save_file(_run(0), tmp_path / folder / "recording.safetensors")
    with pytest.raises(
        RunError, match=r"run_0/.* and .*run_1/.* both hold run_0_recorded_steps. Open the one you mean"
    ):
        open_recording(tmp_path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("seed", "its provenance is another; its seed is 99, expected 43"),
        ("data", "its provenance is another"),
        ("config", r"its model.learning_rate is 0\.5, expected 0\.001"),
        ("number", "it is of run 7, which the index has not"),
    ],
)
def test_an_index_opens_no_run_but_the_one_that_it_was_made_for(
    tmp_path: Path, what: str, message: str
) -> None:
    paths = make_experiment(tmp_path / "flannel3", gather="index")
    gather(paths.folder)
    record = json.loads(paths.record.read_text())
    run = record["runs"][1]
    if what == "config":
        record["config"]["model"]["learning_rate"] = 0.5
    elif what == "number":
        run["index"] = 7
    else:
        record["provenance"]["data"]["corpus"] = "other"
        run["seed"] = 99 if what == "seed" else 43
    shutil.rmtree(paths.run(1).folder)
    schema = make_schema(key_prefix="run_1_")
    writer = make_writer(paths.run(1).folder, schema=schema, metadata=run_metadata(record, run))
    write_rows(writer, range(schema.num_rows), seed=99)
    writer.finish()
    for path in (paths.index, paths.folder):
        with pytest.raises(RunError, match=rf"run_1.* its index was made for: .*{message}.*Bring that one"):
            open_recording(path)
        said = "\n".join(line for part in verify(path).parts for line in part.damage)
        assert re.search(rf"it is not the recording that the index was made for: .*{message}", said), said


def test_reading_gathering_and_info_import_no_torch(indexed: ExperimentPaths) -> None:
    code = (
        "import sys; from flannel_pl.recording import info, reader\n"
        "from flannel_pl.recording.gathering import gather\n"
        "gather.gather_verb(sys.argv[1]); info.info_verb(sys.argv[1])\n"
        "with reader.open_recording(sys.argv[1]) as recording: recording.run(1).embeddings[3, [1, 2]]\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(indexed.folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{indexed.index} (")
