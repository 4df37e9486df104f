"""Whatever the metadata imply of dtype, shape and value is checked, though every checksum is right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.files import open_file
from flannel_pl.recording.gathering.gather import gather
from tests.recording.recording_samples import make_experiment, make_schema
from tests.recording.resealed import Change, reseal


def sample(folder: Path, *, gather_mode: str = "single", **recorder: Any) -> ExperimentPaths:
    tensors = list(make_schema().names[1:-3])
    said = {"tensors": tensors, "dtypes": {"grads": "float32"}, "tokens": "all", **recorder}
    config = {"recorder": {"every_n_steps": 1, **said}, "model": {"vocab_size": 30, "hidden_dim": 4}}
    subset = said["tokens"] != "all"
    dead = np.flatnonzero(np.arange(30) % 3 == 0)
    made = make_experiment(
        folder,
        num_runs=2,
        gather=gather_mode,
        config=config,
        static={"recorded_tokens": dead} if subset else {},
        dtypes=said["dtypes"],
        num_tokens=len(dead) if subset else 30,
    )
    gather(made.folder)
    return made


def found(path: Path) -> str:
    return "; ".join(verify(path).damage)


ONE = np.array(1)
GATHERED: dict[str, tuple[dict[str, Any], Change, str]] = {}


def bad(
    name: str, words: str, tensors: dict[str, Any] | None = None, say: Change = lambda said: None
) -> None:
    GATHERED[name] = (tensors or {}, say, words)


bad("n_runs", "n_runs is I64 of shape (), 3, expected I64 of shape (), 2", {"n_runs": np.array(3)})
bad("base_seed U64", "base_seed is U64 of shape (), 42, exp", {"base_seed": np.array(42, np.uint64)})
bad("base_seed (1,)", "base_seed is I64 of shape (1,), exp", {"base_seed": np.array([42])})
bad(
    "base_seed", "base_seed is I64 of shape (), 43, expected I64 of shape (), 42", {"base_seed": np.array(43)}
)
bad("n_steps", "n_steps is I64 of shape (), 7, expected I64 of shape (), 6", {"n_steps": np.array(7)})
bad("n_steps I32", "n_steps is I32 of", {"n_steps": np.array(6, np.int32)})
bad("n_live", "n_live is I64 of shape (), 1, expected I64 of shape (), 20", {"n_live": ONE})
bad("n_dead", "n_dead is I64 of shape (), 1, expected I64 of shape (), 10", {"n_dead": ONE})
for key in ("init_scale", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2"):
    bad(key, f"{key} is F32 of shape (), 5, expected F32", {key: np.array(5, np.float32)})
    bad(f"{key} F64", f"{key} is F64 of shape ()", {key: np.array(0.1)})
bad("NaN", "adam_beta1 is F32 of shape (), nan, expected", {"adam_beta1": np.array(np.nan, np.float32)})
bad("seeds", "seeds is I64 of shape (2,), expected I64 of shape (2,)", {"seeds": np.array([42, 44])})
bad("seeds short", "seeds is I64 of shape (1,), expected I64 of shape (2,)", {"seeds": np.array([42])})
bad("dead_mask (1, V)", "dead_mask is BOOL of shape (1, 30)", {"dead_mask": np.arange(30)[None] % 3 == 0})
bad("dead_mask U8", "dead_mask is U8 of", {"dead_mask": (np.arange(30) % 3 == 0).astype(np.uint8)})
bad("live_mask", "live_mask is BOOL of shape (30,), expected", {"live_mask": np.ones(30, bool)})
bad("live_indices", "live_indices is I64 of shape (2,), exp", {"live_indices": np.arange(2)})
bad("dead_indices I32", "dead_indices is I32", {"dead_indices": np.arange(0, 30, 3, dtype=np.int32)})
bad("counts", "live_mask is BOOL", {"token_occurrence_counts": np.ones(30, np.int64)})
bad(
    "counts short",
    "token_occurrence_counts is I64 of shape (29,), expected I64 of shape (30,)",
    {"token_occurrence_counts": np.ones(29, np.int64)},
)
bad("counts U64", "token_occurrence_counts is U64", {"token_occurrence_counts": np.ones(30, np.uint64)})
bad("an absent scalar", "adam_beta1 is not there", {"adam_beta1": None})
bad("a tensor more", "more is there and belongs to no run", {"more": ONE})
bad(
    "embeddings F16",
    "run_0_embeddings is F16 of shape (7, 30, 4), expected BF16",
    {"run_0_embeddings": np.zeros((7, 30, 4), np.float16)},
)
bad(
    "grads as the default",
    "run_1_grads is F16 of shape (7, 30, 4), expected F32",
    {"run_1_grads": np.zeros((7, 30, 4), np.float16)},
)
bad(
    "wider",
    "run_1_grads is F32 of shape (7, 30, 5), expected F32 of shape (7, 30, 4)",
    {"run_1_grads": np.zeros((7, 30, 5), np.float32)},
)
bad("scalar column", "run_0_grad_norms is F64 of shape (7,), expected F32", {"run_0_grad_norms": np.zeros(7)})
bad(
    "steps (R, 1)",
    "run_0_recorded_steps is I64 of shape (7, 1)",
    {"run_0_recorded_steps": np.arange(7)[:, None]},
)
bad("a column too few", "run_0_losses is not there, expected BF16", {"run_0_losses": None})
bad(
    "a subset nobody asked for",
    "run_0_recorded_tokens is I64 of shape (30,), expected not there",
    {"run_0_recorded_tokens": np.arange(30)},
)
bad(
    "other rows",
    "num_rows is 7, its config asks for 6",
    say=lambda said: said["config"]["trainer"].update(max_steps=5),
)
bad(
    "other steps",
    "every_n_steps is 1, its config says 2",
    say=lambda said: said["config"]["recorder"].update(every_n_steps=2),
)
bad(
    "another seed",
    "base_seed is I64 of shape (), 42, expected I64 of shape (), 7",
    say=lambda said: said["runs"][0].update(seed=7),
)
bad(
    "another width",
    "run_0_embeddings is BF16 of shape (7, 30, 4), expected BF16 of shape (7, 30, 5)",
    say=lambda said: said["config"]["model"].update(hidden_dim=5),
)
bad(
    "another dtype",
    "run_0_losses is BF16 of shape (7,), expected F32",
    say=lambda said: said["config"]["recorder"].update(dtypes={"grads": "float32", "losses": "float32"}),
)
bad(
    "dtypes that are none",
    "its config cannot be: recorder.dtypes is [1]",
    say=lambda said: said["config"]["recorder"].update(dtypes=[1]),
)
bad(
    "a width that is none",
    "its config cannot be: '<' not supported",
    say=lambda said: said["config"]["model"].update(hidden_dim="4"),
)
bad(
    "fewer tensors",
    "run_0_losses is BF16 of shape (7,), expected not there",
    say=lambda said: said["config"]["recorder"].update(tensors=["embeddings", "grads"]),
)
bad(
    "a rate",
    "learning_rate is F32 of shape (), 0.001",
    say=lambda said: said["config"]["model"].update(learning_rate=0.5),
)
bad(
    "a swept rate",
    "learning_rate is F32 of shape (), 0.00100000005, expected F32 of shape (), nan",
    say=lambda said: said["runs"][1].update(swept={"model.learning_rate": 0.5}),
)
bad(
    "other masks",
    "token_occurrence_counts are not those the experiment was trained with",
    say=lambda said: said["provenance"]["data"].update(masks="0" * 64),
)
bad(
    "run numbers",
    "its runs are numbered [0, 5], expected 0, 1, ...",
    say=lambda said: said["runs"][1].update(index=5),
)
bad("no name", "its metadata cannot be: name is None", say=lambda said: said.pop("name"))
bad("no config", "its metadata cannot be: config is None", say=lambda said: said.pop("config"))
bad(
    "static checksums",
    "static_checksums are not those of the experiment's tensors",
    say=lambda said: said["static_checksums"].pop("seeds"),
)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPaths:
    return sample(tmp_path_factory.mktemp("gathered") / "x")


@pytest.mark.parametrize(("tensors", "say", "words"), GATHERED.values(), ids=list(GATHERED))
def test_a_gathered_file(
    gathered: ExperimentPaths, tmp_path: Path, tensors: dict[str, Any], say: Change, words: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(gathered.gathered.read_bytes())
    reseal(path)
    assert verify(path).ok
    reseal(path, tensors, say)
    assert words in found(path)


def test_the_extras_of_an_index(tmp_path: Path) -> None:
    paths = sample(tmp_path / "x", gather_mode="index")
    assert verify(paths.index).ok
    reseal(paths.index_extras, {"base_seed": np.array(42, np.uint64)})
    assert "base_seed is U64 of shape (), 42, expected I64" in found(paths.index_extras)
    assert "base_seed is U64" in found(paths.index)
    reseal(paths.run(1).recording, {"run_1_embeddings": np.zeros((7, 30, 4), np.float16)})
    assert "run_1_embeddings is F16 of shape (7, 30, 4), expected BF16" in found(paths.index)


@pytest.mark.parametrize(
    ("tokens", "ids", "words"),
    [
        ("dead", np.arange(10), "recorded_tokens are not the dead tokens, which recorder.tokens asks for"),
        ("live", np.arange(0, 30, 3), "recorded_tokens are not the live tokens"),
        ("dead", np.arange(30, 0, -3), "recorded_tokens are not ascending token ids"),
        ("dead", np.array([*range(-1, 9)]), "recorded_tokens are not ascending token ids"),
        ("some.txt", np.arange(21, 31), "recorded_tokens go up to 30, of a vocabulary of 30"),
        (
            "dead",
            np.arange(0, 30, 3)[:, None],
            "recorded_tokens is I64 of shape (10, 1), expected I64 of shape",
        ),
        ("dead", np.arange(0, 30, 3, dtype=np.int32), "recorded_tokens is I32 of shape (10,), expected I64"),
        (
            "dead",
            np.arange(9),
            "run_0_embeddings is BF16 of shape (7, 10, 4), expected BF16 of shape (7, 9, 4)",
        ),
        ("all", np.arange(0, 30, 3), "static_checksums has ['recorded_tokens'], expected []"),
    ],
)
def test_the_tokens_of_a_subset(tmp_path: Path, tokens: str, ids: "np.ndarray[Any, Any]", words: str) -> None:
    paths = sample(tmp_path / "x", tokens="dead")
    assert verify(paths.folder).ok

    def say(said: dict[str, Any]) -> None:
        said["config"]["recorder"]["tokens"] = tokens

    reseal(paths.gathered, {"run_0_recorded_tokens": ids, "run_1_recorded_tokens": ids}, say)
    assert words in found(paths.gathered)


def test_a_shard(tmp_path: Path) -> None:
    paths = sample(tmp_path / "x")
    shard = paths.run(0).recording
    with open_file(shard) as file:
        checksums = file.read("checksums")
    reseal(shard, {"embeddings": np.zeros((7, 30, 4), np.float32)})
    assert found(shard) == "embeddings is F32 of shape (7, 30, 4), expected BF16 of shape (7, 30, 4)"
    reseal(shard, {"checksums": checksums.view(np.int64)})
    assert "checksums is I64 of shape (7, 10), expected U64 of shape (7, 10)" in found(shard)


def test_swept_scalars_are_not_numbers(tmp_path: Path) -> None:
    paths = make_experiment(
        tmp_path / "x",
        num_runs=2,
        swept=lambda run: {"model.init_scale": 0.1 + run, "trainer.max_steps": 6 + run},
    )
    gather(paths.folder)
    assert verify(paths.folder).ok
    reseal(paths.gathered, {"n_steps": np.array(6)})
    assert "n_steps is I64 of shape (), 6, expected I64 of shape (), -1 by the rest of the file" in found(
        paths.gathered
    )
    assert json.loads(paths.record.read_text())["runs"][1]["swept"]["trainer.max_steps"] == 7
