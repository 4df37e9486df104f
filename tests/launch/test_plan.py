"""Which run goes where, with how many threads, and what is refused; on devices that are only claimed."""

import json
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.launch import devices, plan
from flannel_pl.launch.cgroups import Limit
from flannel_pl.launch.devices import visible_name
from flannel_pl.launch.launchers.local import capacity
from flannel_pl.launch.plan import describe_plan, make_plan
from flannel_pl.recording.experiment_record import ExperimentRecord, read_record
from flannel_pl.training.cli import resolve
from tests.conftest import SmallData
from tests.launch.status_samples import make_experiment, write_record

GB = 10**9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> "Machine":
    return Machine(monkeypatch)


class Machine:
    """A host with devices, cores and memory of our choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self(cores=8)

    def __call__(
        self,
        *,
        cores: float,
        memory: int | None = 256 * GB,
        device_memory: dict[int, int] | None = None,
        **found: int,
    ) -> None:
        self.monkeypatch.setattr(devices, "available_devices", lambda: {**found, "cpu": 1})
        self.monkeypatch.setattr(capacity, "available_cores", lambda: Limit(cores, "a test"))
        free = None if memory is None else Limit(memory, "a test")
        self.monkeypatch.setattr(capacity, "free_memory", lambda: free)
        self.monkeypatch.setattr(capacity, "fork_server_bytes", lambda: 0)
        self.monkeypatch.setattr(
            capacity, "free_device_memory", lambda accelerator, devices: device_memory or {}
        )


def slots_of(
    tmp_path: Path, *arguments: str, record: ExperimentRecord | None = None
) -> list[tuple[str, int]]:
    return [(slot.name, slot.threads) for slot in planned(tmp_path, *arguments, record=record)[1].slots]


def planned(
    tmp_path: Path, *arguments: str, record: ExperimentRecord | None = None
) -> tuple[ResolvedExperiment, plan.Plan]:
    words = ["--trainer.max_steps", "10", "--experiment.seeds", "1..10", *arguments]
    experiment = ResolvedExperiment.from_config(resolve([*words, "--experiment.output_dir", str(tmp_path)]))
    bytes_of = {run.index: 10**6 * (1 + run.index) for run in experiment.selected}
    return experiment, make_plan(experiment, experiment.selected, bytes_of=bytes_of, record=record)


def test_on_the_cpu_every_core_trains_a_run(tmp_path: Path, machine: Machine) -> None:
    assert slots_of(tmp_path) == [("cpu", 1)] * 8
    assert slots_of(tmp_path, "--experiment.seeds", "1..3") == [("cpu", 2)] * 3
    assert slots_of(tmp_path, "--experiment.seeds", "1") == [("cpu", 8)]
    assert slots_of(tmp_path, "--trainer.devices", "2") == [("cpu", 4)] * 2
    assert slots_of(tmp_path, "--launch.runs_per_device", "4") == [("cpu", 2)] * 4
    assert slots_of(tmp_path, "--launch.threads_per_run", "3", "--launch.devices", "2") == [("cpu", 3)] * 2


def test_memory_bounds_the_runs_side_by_side(tmp_path: Path, machine: Machine) -> None:
    need = planned(tmp_path)[1].memory.host
    machine(cores=8, memory=need.of(2) + need.run_bytes // 2)
    assert slots_of(tmp_path) == [("cpu", 4)] * 2
    with pytest.raises(UserError, match=r"5 run\(s\) side by side on one cpu device need about .* are free"):
        slots_of(tmp_path, "--trainer.devices", "5")
    machine(cores=2, memory=10**6)
    with pytest.raises(UserError, match="train fewer at a time"):
        slots_of(tmp_path)
    machine(cores=2, memory=None)
    assert slots_of(tmp_path) == [("cpu", 1)] * 2


def test_swept_sizes_count_for_memory(tmp_path: Path, machine: Machine) -> None:
    small = planned(tmp_path)[1].memory.host.run_bytes
    swept = planned(tmp_path, "--experiment.sweep", "{data.batch_size: [1, 256]}")[1].memory.host.run_bytes
    assert swept > 2 * small


def test_runs_are_spread_over_all_gpus_first(tmp_path: Path, machine: Machine) -> None:
    machine(cores=16, cuda=4)
    assert slots_of(tmp_path) == [(f"cuda:{number}", 4) for number in range(4)]
    two_each = slots_of(tmp_path, "--launch.runs_per_device", "2")
    assert two_each == [(f"cuda:{number}", 2) for number in (0, 1, 2, 3, 0, 1, 2, 3)]
    assert slots_of(tmp_path, "--trainer.devices", "[1, 3]") == [("cuda:1", 8), ("cuda:3", 8)]
    assert slots_of(tmp_path, "--trainer.devices", "2") == [("cuda:0", 8), ("cuda:1", 8)]
    assert slots_of(tmp_path, "--experiment.seeds", "1..2") == [("cuda:0", 8), ("cuda:1", 8)]
    assert slots_of(tmp_path, "--trainer.accelerator", "gpu") == [
        (f"cuda:{number}", 4) for number in range(4)
    ]
    assert slots_of(tmp_path, "--trainer.accelerator", "cpu", "--trainer.devices", "1") == [("cpu", 16)]
    machine(cores=10, mps=1)
    assert slots_of(tmp_path) == [("mps:0", 10)]


def test_every_device_has_to_have_room(tmp_path: Path, machine: Machine) -> None:
    free = {0: 80 * GB, 1: GB // 2, 2: 80 * GB}
    machine(cores=16, cuda=3, device_memory=free)
    with pytest.raises(
        UserError, match=r"1 run\(s\) side by side on cuda:1 need about .* and 0.50 GB are free"
    ):
        slots_of(tmp_path)
    machine(cores=16, cuda=3, device_memory={number: free[number] for number in (0, 2)})
    assert slots_of(tmp_path, "--trainer.devices", "[0, 2]") == [("cuda:0", 8), ("cuda:2", 8)]
    with pytest.raises(UserError, match=r"100 run\(s\) side by side on cuda:0 need about"):
        slots_of(tmp_path, "--launch.runs_per_device", "100", "--experiment.seeds", "1..300")


def test_the_memory_of_the_host_bounds_runs_on_gpus_as_well(tmp_path: Path, machine: Machine) -> None:
    machine(cores=16, cuda=4)
    need = planned(tmp_path)[1].memory.host
    machine(cores=16, cuda=4, memory=need.of(2))
    assert slots_of(tmp_path) == [("cuda:0", 8), ("cuda:1", 8)]
    with pytest.raises(UserError, match=r"8 run\(s\) side by side on this host need about .* \(a test\)"):
        slots_of(tmp_path, "--launch.runs_per_device", "2")


def test_half_a_core_is_one_and_the_plan_says_which_limits_count(tmp_path: Path, machine: Machine) -> None:
    machine(cores=2.5, memory=16 * GB)
    assert slots_of(tmp_path) == [("cpu", 1)] * 2
    text = describe_plan(*planned(tmp_path))
    assert "cores       2.5 (a test)" in text
    assert "for all of them (estimate); free: 16.00 GB (a test)" in text
    machine(cores=1.5, memory=None)
    assert slots_of(tmp_path) == [("cpu", 1)]
    assert "free:" not in describe_plan(*planned(tmp_path))


@pytest.mark.parametrize("wanted", ["5", "[4]", "[0, 0]", "0", "[]"])
def test_gpus_that_are_not_there(tmp_path: Path, machine: Machine, wanted: str) -> None:
    machine(cores=16, cuda=4)
    with pytest.raises(UserError, match=r"of cuda there is only \[0, 1, 2, 3\]"):
        slots_of(tmp_path, "--trainer.devices", wanted)


def test_going_on_keeps_the_number_of_threads_of_the_first_time(tmp_path: Path, machine: Machine) -> None:
    begun = make_experiment(tmp_path / "exp", 1)
    write_record(begun, settled={"accelerator": "cpu", "threads_per_run": 3})
    record = read_record(begun.paths)
    assert slots_of(tmp_path, record=record) == [("cpu", 3)] * 8


@pytest.mark.parametrize(("variable", "name"), [("", "2"), ("5,6,7", "7"), ("GPU-a,GPU-b,GPU-c", "GPU-c")])
def test_a_child_is_given_the_name_its_device_has_outside(
    monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_name(2) == name


def test_the_plan_in_words(tmp_path: Path, machine: Machine) -> None:
    text = describe_plan(*planned(tmp_path))
    assert "10 to train, 0 finished" in text
    assert "cpu x 8 runs side by side, 1 thread(s) each" in text
    assert "0.01 GB a run, 0.06 GB still to write" in text
    assert "gathered    0.06 GB to copy" in text


def test_a_sweep_over_texts_with_other_live_tokens_is_refused(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one masks file of an experiment would be wrong for all runs but the first."""
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    text = small_data.corpus.read_text(encoding="utf-8")
    for path, cut in zip(texts, (text, text[:5000]), strict=True):
        path.write_text(cut, encoding="utf-8")
    arguments = [*small_data.arguments, "--trainer.max_steps", "1", "--experiment.output_dir", str(tmp_path)]
    arguments[arguments.index(str(small_data.masks))] = "null"
    sweep = ["--experiment.sweep", json.dumps({"data.corpus_path": list(map(str, texts))})]
    for run in ([], ["--experiment.run", "1"]):
        assert main(["plan", *arguments, *sweep, *run]) == 2
        expected = "gives run 0 and run 1 texts in which other tokens are live, or as often"
        assert expected in capsys.readouterr().err
    first, *middle, last = text.split(" ")
    turned = " ".join((first, *middle[::-1], last))  # the same words, as often
    texts[1].write_text(turned, encoding="utf-8")
    assert main(["plan", *arguments, *sweep]) == 0
    texts[1].write_text(text, encoding="utf-8")
    assert main(["plan", *arguments, *sweep]) == 2
    assert "which are the same; name it once" in capsys.readouterr().err
