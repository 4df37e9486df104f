"""Two recordings as a whole: what belongs together, what is equal, what only one has, and why they differ."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flannel_pl
from flannel_pl.analysis.comparing.compare import RunComparison, compare
from flannel_pl.analysis.comparing.text import describe_comparison, summarize_comparison
from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.formats.schema import RECORDABLE
from flannel_pl.recording.gathering.gather import gather
from tests.analysis.compare_samples import copy, flip, put, read, record, write
from tests.recording.recording_samples import make_experiment


def only_run(a: Path, b: Path) -> RunComparison:
    (run,) = compare(a, b).runs
    return run


def test_equal_recordings_are_equal(tmp_path: Path) -> None:
    path = record(tmp_path / "run_0")
    seen: list[tuple[int, int]] = []
    got = flannel_pl.compare(path, copy(path, "b"), progress=lambda done, total: seen.append((done, total)))
    assert got.equal
    assert got.equal_in_common
    (run,) = got.runs
    assert (run.runs, run.seeds, run.num_tokens, run.origins) == ((0, 0), (42, 42), 30, ())
    assert run.steps_R.tolist() == list(range(7))
    assert {tensor.name for tensor in run.tensors} == set(load_file(path))
    assert run.first is None
    total = 2 * sum(array.nbytes for array in load_file(path).values())
    assert seen[-1] == (total, total)
    assert all(total == whole for _, whole in seen)


PLACES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("embeddings", "grads", "momentum", "variance"), (5, 21, 3)),
    **{"logits": (5, 21), "checksums": (5, 9)},
    **dict.fromkeys(("losses", "losses_f32", "learning_rates", "grad_norms", "recorded_steps"), (5,)),
}


@pytest.mark.parametrize("name", PLACES)
def test_one_bit_of_any_tensor_is_found(tmp_path: Path, name: str) -> None:
    path = record(tmp_path / "run_0")
    other = copy(path, "b")
    place = PLACES[name]
    flip(other, name, place)
    got = compare(path, other)
    assert not got.equal
    (run,) = got.runs
    (tensor,) = [tensor for tensor in run.tensors if not tensor.equal]
    assert (tensor.name, tensor.num_differing) == (name, 1)
    assert run.first is tensor
    assert tensor.first is not None
    assert (tensor.first.step, tensor.first.row_a, tensor.first.row_b) == (5, 5, 5)
    column = "grad_norms" if name == "checksums" else (*place, None)[1]
    assert (tensor.first.column, tensor.first.dim) == (column, (*place, None, None)[2])
    assert tensor.first.bits[0] ^ tensor.first.bits[1] == 1


def test_the_first_of_several_is_the_earliest_and_nearest_to_the_cause(tmp_path: Path) -> None:
    path = record(tmp_path / "run_0")
    other = copy(path, "b")
    for name, place in (("embeddings", (4, 0, 0)), ("grads", (4, 29, 3)), ("losses_f32", (5,))):
        flip(other, name, place)
    first = only_run(path, other).first
    assert first is not None
    assert first.name == "grads"
    flip(other, "embeddings", (3, 1, 1))
    first = only_run(path, other).first
    assert first is not None
    assert first.name == "embeddings"


@pytest.mark.parametrize("gathered_with", ["single", "index"])
def test_every_form_of_an_experiment_is_equal_to_every_other(tmp_path: Path, gathered_with: str) -> None:
    shards = make_experiment(tmp_path / "a" / "flannel3", num_runs=2)
    other = make_experiment(tmp_path / "b" / "flannel3", num_runs=2, gather=gathered_with)
    gather(other.folder)
    whole = [shards.folder, other.folder, other.index if gathered_with == "index" else other.gathered]
    for a in whole:
        for b in whole:
            got = compare(a, b)
            assert got.equal
            assert [run.runs for run in got.runs] == [(0, 0), (1, 1)]
        for one in (shards.run(1).folder, other.run(1).recording):
            for pair in ((a, one), (one, a)):
                got = compare(*pair)
                assert got.equal
                assert [run.runs for run in got.runs] == [(1, 1)]
                assert got.runs_only == ((), ())
    assert not compare(shards.run(0).folder, shards.run(1).folder).equal


def test_runs_that_only_one_has(tmp_path: Path) -> None:
    a = make_experiment(tmp_path / "a" / "flannel3", num_runs=2)
    b = make_experiment(tmp_path / "b" / "flannel3", num_runs=3)
    for paths in (a, b):
        gather(paths.folder)
    got = compare(a.folder, b.folder)
    assert (got.runs_only, got.shared) == (((), (2,)), ("n_runs",))
    assert all(run.equal for run in got.runs)
    assert not got.equal
    assert got.equal_in_common
    asked = compare(a.folder, b.folder, runs=[(1, 1), (0, 2)])
    assert [run.equal for run in asked.runs] == [True, False]
    assert [run.seeds for run in asked.runs] == [(43, 43), (42, 44)]
    assert (asked.runs_only, asked.shared) == (((), ()), ())
    assert compare(b.folder, a.folder, runs=[(1, 1)]).equal


def test_runs_that_are_not_finished(tmp_path: Path) -> None:
    a, b = (make_experiment(tmp_path / name / "flannel3", num_runs=3) for name in "ab")

    def lose(paths: ExperimentPaths, run: int) -> None:
        paths.run(run).recording.rename(paths.run(run).partial)

    lose(a, 2)
    got = compare(a.folder, b.folder)
    assert (got.runs_only, got.missing, got.equal) == (((), (2,)), ((2,), ()), False)
    assert "A is not complete: it lacks run 2 of its experiment" in describe_comparison(got)
    lose(a, 1)  # one is left, and that does not make it a recording of one run
    got = compare(a.folder, b.folder)
    assert (got.runs_only, got.missing, got.equal) == (((), (1, 2)), ((1, 2), ()), False)
    lose(b, 2)
    lose(b, 1)
    got = compare(a.folder, b.folder)
    assert (got.equal, got.missing) == (True, ((1, 2), (1, 2)))
    assert "B is not complete: it lacks runs 1, 2 of its experiment" in describe_comparison(got)
    b.run(1).partial.rename(b.run(1).recording)
    lose(b, 0)
    with pytest.raises(UserError, match=r"no run in common: .* run 0, .* run 1. .* --runs 0:1"):
        compare(a.folder, b.folder)
    assert compare(a.folder, b.folder, runs=[(0, 1)]).missing == ((), ())


def test_the_earliest_difference_of_all_runs_is_named(tmp_path: Path) -> None:
    a, b = (make_experiment(tmp_path / name / "flannel3", num_runs=3) for name in "ab")
    for run, row in ((0, 5), (1, 2), (2, 4)):
        flip(b.run(run).recording, "embeddings", (row, 0, 0))
    verdict = summarize_comparison(compare(a.folder, b.folder), elapsed_s=1)
    expected = "3 of them different, first at step 2, in embeddings of run 1 (3 runs compared in 1.0 s)"
    assert verdict == f"different: {expected}"


def test_scalars_of_another_type_differ(tmp_path: Path) -> None:
    a, b = (make_experiment(tmp_path / name / "flannel3", num_runs=2) for name in "ab")
    for paths in (a, b):
        gather(paths.folder)
    tensors = load_file(b.gathered)
    save_file(tensors | {"dead_indices": tensors["dead_indices"].view(np.uint64)}, b.gathered)
    got = compare(a.folder, b.folder)
    assert got.shared == ("dead_indices",)
    assert summarize_comparison(got, elapsed_s=1) == "different: in dead_indices (2 runs compared in 1.0 s)"
    save_file(tensors | {"dead_indices": tensors["dead_indices"][:, None]}, b.gathered)  # the same bytes
    assert compare(a.folder, b.folder).shared == ("dead_indices",)


def test_masks_that_differ_make_experiments_differ(tmp_path: Path) -> None:
    a, b = (make_experiment(tmp_path / name / "flannel3", num_runs=2) for name in "ab")
    write(b.masks, "live_mask", ~read(b.masks, "live_mask"))
    got = compare(a.folder, b.folder)
    assert got.shared == ("live_mask",)
    assert all(run.equal for run in got.runs)
    assert not got.equal
    assert not got.equal_in_common


def test_a_longer_run_is_compared_as_far_as_both_go(tmp_path: Path) -> None:
    short, long = record(tmp_path / "a", max_steps=4), record(tmp_path / "b")
    run = only_run(short, long)
    assert run.equal_in_common
    assert not run.equal
    assert [steps.tolist() for steps in run.steps_only] == [[], [5, 6]]
    assert run.steps_R.tolist() == [0, 1, 2, 3, 4]
    flip(long, "variance", (6, 0, 0))
    assert only_run(short, long).equal_in_common
    flip(long, "variance", (4, 0, 0))
    assert not only_run(long, short).equal_in_common


def test_rows_belong_together_by_their_steps(tmp_path: Path) -> None:
    every = record(tmp_path / "a")
    third = record(tmp_path / "b", every_n_steps=3)
    for name in load_file(every):
        if name != "checksums":
            write(third, name, read(every, name)[::3])
    write(third, "checksums", read(every, "checksums")[::3])
    run = only_run(every, third)
    assert run.equal_in_common
    assert run.steps_R.tolist() == [0, 3, 6]
    assert [steps.tolist() for steps in run.steps_only] == [[1, 2, 4, 5], []]
    flip(third, "grads", (2, 7, 1))
    first = only_run(every, third).first
    assert first is not None
    assert first.first is not None
    assert (first.first.step, first.first.row_a, first.first.row_b) == (6, 6, 2)


def test_tokens_belong_together_by_their_ids(tmp_path: Path) -> None:
    all_tokens = record(tmp_path / "a")
    ids, others = [3, 4, 11, 29], [4, 5, 29]
    some = record(tmp_path / "b", tokens=ids)
    few = record(tmp_path / "c", tokens=others)
    for path, chosen in ((some, ids), (few, others)):
        for name in load_file(all_tokens):
            array = read(all_tokens, name)
            if name != "checksums":
                write(path, name, array[:, chosen] if name in RECORDABLE and name != "losses" else array)
    run = only_run(all_tokens, some)
    assert run.equal_in_common
    assert not run.equal
    assert (run.num_tokens, run.tokens_only) == (4, (26, 0))
    assert "checksums" not in {tensor.name for tensor in run.tensors}
    run = only_run(few, some)
    assert (run.equal_in_common, run.num_tokens, run.tokens_only) == (True, 2, (1, 2))
    assert compare(some, copy(some, "d")).equal
    flip(some, "momentum", (2, 3, 1))  # token 29
    for other in (all_tokens, few, tmp_path / "d.safetensors"):
        first = only_run(other, some).first
        assert first is not None
        assert first.first is not None
        assert (first.name, first.first.column, first.first.dim, first.num_differing) == (
            "momentum",
            29,
            1,
            1,
        )


def test_tokens_of_which_none_is_in_both(tmp_path: Path) -> None:
    a, b = record(tmp_path / "a", tokens=[1, 2, 3]), record(tmp_path / "b", tokens=[7, 8])
    run = only_run(a, b)
    of_tokens = {"embeddings", "grads", "momentum", "variance", "logits"}
    assert run.not_compared.keys() == of_tokens | {"checksums"}
    assert {run.not_compared[name] for name in of_tokens} == {"no token is in both"}
    assert not of_tokens & {tensor.name for tensor in run.tensors}
    assert (run.num_tokens, run.tokens_only, run.equal) == (0, (3, 2), False)


def test_tokens_in_an_order_of_their_own(tmp_path: Path) -> None:
    a = record(tmp_path / "a", tokens=[9, 2, 5])
    b = copy(a, "b")
    flip(b, "embeddings", (1, 0, 0))
    first = only_run(a, b).first
    assert first is not None
    assert first.first is not None
    assert first.first.column == 9
    write(b, "recorded_tokens", np.array([2, 5, 9]))
    for name in ("embeddings", "grads", "momentum", "variance", "logits"):
        write(b, name, read(a, name)[:, [1, 2, 0]])
    run = only_run(a, b)
    assert (run.equal, run.tokens_only) == (True, (0, 0))
    assert run.not_compared == {"checksums": "they are of all tokens of a row"}


def test_checksums_of_a_recording_without_tokens_are_compared(tmp_path: Path) -> None:
    full, lean = record(tmp_path / "a", tokens=[1, 2]), record(tmp_path / "b", tensors=["losses"])
    run = only_run(full, lean)
    assert (run.tokens_only, run.not_compared) == ((0, 0), {})
    assert "checksums" in {tensor.name for tensor in run.tensors}


def test_checksums_whose_file_does_not_say_what_they_are_of(tmp_path: Path) -> None:
    a = record(tmp_path / "a")
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(a), plain)  # another writer, without our metadata
    assert only_run(a, plain).equal
    flip(plain, "checksums", (3, 2))
    for pair in ((a, plain), (plain, a)):
        run = only_run(*pair)
        assert run.first is not None
        assert run.first.first is not None
        assert (run.first.name, run.first.first.row_a, run.first.first.column) == ("checksums", 3, 2)


def test_tensors_that_only_one_has(tmp_path: Path) -> None:
    full = record(tmp_path / "a")
    lean = record(tmp_path / "b", tensors=["embeddings", "losses"])
    columns = ["recorded_steps", "embeddings", "losses", "losses_f32", "learning_rates", "grad_norms"]
    for name in columns:
        write(lean, name, read(full, name))
    every = ["recorded_steps", *RECORDABLE, "losses_f32", "learning_rates", "grad_norms"]
    write(lean, "checksums", read(full, "checksums")[:, [every.index(name) for name in columns]])
    run = only_run(full, lean)
    assert set(run.names_only[0]) == {"grads", "logits", "momentum", "variance"}
    assert run.names_only[1] == ()
    assert run.equal_in_common
    assert not run.equal
    assert {tensor.name for tensor in run.tensors} == {*columns, "checksums"}
    flip(full, "checksums", (1, every.index("losses_f32")))
    first = only_run(full, lean).first
    assert first is not None
    assert first.first is not None
    assert (first.name, first.first.column) == ("checksums", "losses_f32")


def test_checksums_of_other_dtypes_are_not_expected_to_be_equal(tmp_path: Path) -> None:
    narrow = record(tmp_path / "a", tensors=["losses"])
    wide = record(tmp_path / "b", tensors=["losses"], dtypes={"losses": "float32"})
    for name in ("recorded_steps", "losses_f32", "learning_rates", "grad_norms"):
        write(wide, name, read(narrow, name))
    sums = read(wide, "checksums").copy()
    sums[:, [0, 2, 3, 4]] = read(narrow, "checksums")[:, [0, 2, 3, 4]]
    write(wide, "checksums", sums)
    run = only_run(narrow, wide)
    assert [tensor.name for tensor in run.tensors if not tensor.equal] == ["losses"]


def test_checksums_of_other_shapes_are_not_expected_to_be_equal(tmp_path: Path) -> None:
    run = only_run(record(tmp_path / "a"), record(tmp_path / "b", hidden_dim=5))
    (checksums,) = [tensor for tensor in run.tensors if tensor.name == "checksums"]
    alike = ["recorded_steps", "logits", "losses", "losses_f32", "learning_rates", "grad_norms"]
    assert checksums.num_elements == 7 * len(alike)


def test_a_damaged_step_is_found_as_one(tmp_path: Path) -> None:
    path = record(tmp_path / "run_0")
    other = copy(path, "b")
    steps = read(path, "recorded_steps").copy()
    steps[3] = 700
    write(other, "recorded_steps", steps)
    run = only_run(path, other)
    assert run.first is not None
    assert run.first.name == "recorded_steps"
    assert run.first.first is not None
    assert (run.first.first.row_a, run.first.first.values) == (3, (3, 700))


def notebook_file(path: Path, source: Path, *, run: int = 0) -> Path:
    """Writes what the notebook would have: its seven tensors, its keys, no metadata."""
    names = ("recorded_steps", *RECORDABLE)
    tensors = {f"run_{run}_{name}": read(source, name) for name in names}
    save_file(tensors | {"base_seed": np.array(42)}, path)
    return path


def test_against_the_notebooks_own_file(tmp_path: Path) -> None:
    ours = record(tmp_path / "run_0", metadata={"config": {"model": {"init_scale": 0.02}}})
    run = only_run(ours, notebook_file(tmp_path / "theirs.safetensors", ours))
    assert run.equal_in_common
    assert not run.equal
    assert set(run.names_only[0]) == {"losses_f32", "learning_rates", "grad_norms", "checksums"}
    assert (run.seeds, run.names_only[1]) == ((42, 42), ())
    assert run.origins == ("config, software, device: B does not say",)
    theirs = notebook_file(tmp_path / "run three.safetensors", ours, run=3)
    assert only_run(theirs, tmp_path / "theirs.safetensors").equal
    assert only_run(theirs, tmp_path / "theirs.safetensors").runs == (3, 0)


def origin(**changes: Any) -> dict[str, Any]:
    config = {
        "model": {"init_scale": 0.02, "n_layer": 2},
        "data": {"batch_size": 32, "corpus_path": "here.txt"},
        "trainer": {"max_steps": 6},
        "recorder": {"every_n_steps": 1},
        "experiment": {"name": "a"},
        "launch": {"devices": 1},
    }
    provenance = {
        **{"versions": {"torch": "2.13.0"}, "threads": 2, "data": {"corpus": "aaa"}},
        **{"host": "one", "created": "today", "command": ["fit"]},
    }
    known = {"config": config, "provenance": provenance}
    for key, value in changes.items():
        *groups, name = key.split("__")
        tree: dict[str, Any] = known
        for group in groups:
            tree = tree[group]
        tree[name] = value
    return known


def test_attempts_in_several_environments_are_told_apart(tmp_path: Path) -> None:
    here = {"versions": {"torch": "2.13.0"}, "host": "one", "cpu": {"name": "AMD"}, "threads": 2}
    attempts = [{"first_row": 0, "environment": here}]
    a = record(tmp_path / "a", metadata={"attempts": attempts})
    there = {"versions": {"torch": "2.14.0"}, "host": "two"}
    attempts = [*attempts, {"first_row": 4, "environment": there}]
    b = record(tmp_path / "b", metadata={"attempts": attempts})
    assert only_run(a, b).origins == ('versions.torch: "2.13.0" in A, "2.13.0; 2.14.0 from row 4 on" in B',)
    assert only_run(b, b).origins == ()


def test_why_runs_may_differ(tmp_path: Path) -> None:
    a = record(tmp_path / "a", metadata=origin())
    b = record(
        tmp_path / "b",
        seed=1,
        metadata={
            "seed": 43,
            "swept": {"model.n_layer": 3},
            **origin(
                config__model__init_scale=0.03,
                config__data__corpus_path="there.txt",
                config__experiment__name="b",
                config__launch__devices=8,
                config__trainer__precision="32-true",
                provenance__versions={"torch": "2.14.0"},
                provenance__threads=1,
                provenance__data={"corpus": "bbb"},
                provenance__host="another",
            ),
        },
    )
    assert only_run(a, b).origins == (
        "seed: 42 in A, 43 in B",
        'content of the corpus: "aaa" in A, "bbb" in B',
        "model.init_scale: 0.02 in A, 0.03 in B",
        "model.n_layer: 2 in A, 3 in B",
        "threads: 2 in A, 1 in B",
        'trainer.precision: nothing in A, "32-true" in B',
        'versions.torch: "2.13.0" in A, "2.14.0" in B',
    )


def test_a_shard_and_its_gathered_file_say_the_same_of_their_origin(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "flannel3", swept=lambda run: {"model.weight_decay": 0.5 * run})
    gather(paths.folder)
    assert only_run(paths.run(2).folder, paths.gathered).origins == ()
    (run,) = compare(paths.gathered, paths.gathered, runs=[(1, 2)]).runs
    assert run.origins == ("seed: 43 in A, 44 in B", "model.weight_decay: 0.5 in A, 1.0 in B")


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    a = make_experiment(tmp_path / "a" / "flannel3", num_runs=2)
    with pytest.raises(UserError, match=r"^B has no run 7; .* has runs 0, 1$"):
        compare(a.folder, a.folder, runs=[(0, 7)])
    one = notebook_file(tmp_path / "one.safetensors", a.run(0).recording, run=5)
    with pytest.raises(UserError, match=r"no run in common: .* runs 0, 1, .* run 5.*, e.g. --runs 0:5"):
        compare(a.folder, one)
    with pytest.raises(UserError, match="There is no nowhere"):
        compare(a.folder, "nowhere")
    save_file({"x": np.zeros(3)}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"^B is no recording: .*none.safetensors holds no run$"):
        compare(a.folder, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="no pair of runs is given; expected at least one"):
        compare(a.folder, a.folder, runs=[])
    save_file({"losses": np.zeros(7)}, tmp_path / "other.safetensors")
    save_file({"grad_norms": np.zeros(7)}, tmp_path / "another.safetensors")
    with pytest.raises(
        UserError, match=r"A \(losses\) and run 0 of B \(grad_norms\) have no tensor in common"
    ):
        compare(tmp_path / "other.safetensors", tmp_path / "another.safetensors")
    late = tmp_path / "late.safetensors"
    save_file({"recorded_steps": np.arange(100, 107)}, late)
    with pytest.raises(UserError, match=r"run 0 of A \(steps 0 to 6\) and run 0 of B \(steps 100 to 106\)"):
        compare(a.run(0).folder, late)


def test_damage_is_said_to_be_damage(tmp_path: Path) -> None:
    good = record(tmp_path / "a")
    save_file({"recorded_steps": np.arange(7), "losses": np.zeros(6)}, tmp_path / "short.safetensors")
    with pytest.raises(RunError, match=r"different numbers of rows \(.*losses 6.*\)"):
        compare(good, tmp_path / "short.safetensors")
    for tensors, words in (
        ({"recorded_steps": np.arange(0), "losses": np.zeros(0)}, "it has no rows"),
        ({"recorded_tokens": np.arange(3)}, "it has no rows"),
        ({"embeddings": np.zeros(7)}, r"not have one column for each token \(embeddings \[7\]\)"),
        ({"embeddings": np.zeros((7, 5, 2)), "logits": np.zeros((7, 3))}, r"embeddings \[7, 5, 2\], logits"),
        (
            {"logits": np.zeros((7, 3)), "recorded_tokens": np.array([2, 2, 5])},
            "2 different ids in 3 recorded_",
        ),
    ):
        save_file(tensors, tmp_path / "odd.safetensors")
        with pytest.raises(RunError, match=f"run 0 is damaged: .*{words}.*See flannel-pl verify"):
            compare(good, tmp_path / "odd.safetensors")
    save_file({"recorded_steps": np.arange(7)[::-1].copy()}, tmp_path / "back.safetensors")
    with pytest.raises(RunError, match="recorded_steps do not ascend"):
        compare(good, tmp_path / "back.safetensors")


def test_nan_rows_are_equal_where_their_bits_are(tmp_path: Path) -> None:
    path = record(tmp_path / "run_0")
    put(path, "losses_f32", (0,), np.nan)
    put(path, "losses", (0,), np.nan)
    assert compare(path, copy(path, "b")).equal


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, json, flannel_pl, flannel_pl.analysis.comparing.verb; flannel_pl.compare\n"
        "print(json.dumps(sorted({'torch', 'lightning', 'matplotlib', 'transformers'} & set(sys.modules))))"
    )
    assert json.loads(subprocess.check_output([sys.executable, "-c", code], text=True)) == []
