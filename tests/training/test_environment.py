"""A run says in which environment which of its rows were made, and does not mix them unless told to."""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import flannel_pl
from flannel_pl import provenance
from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment, RunPaths, Slot
from flannel_pl.launch.events import read_events
from flannel_pl.quantities.core import environment as environments
from flannel_pl.recording.formats.attempts import attempts_of, environment_changes
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.training.cli import resolve
from flannel_pl.training.environment import check_environments
from tests.conftest import SmallData
from tests.recording.recording_samples import make_old
from tests.training.test_resume import StopAfter

STEPS = 8


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> StopAfter:
    return StopAfter(monkeypatch)


def command(data: SmallData, folder: Path, *arguments: str) -> list[str]:
    words = [*data.arguments, "--trainer.max_steps", str(STEPS), "--launch.checkpoint_every", "100"]
    words += ["--launch.threads_per_run", "1", "--trainer.enable_progress_bar", "false"]
    return [*words, "--experiment.output_dir", str(folder), "--experiment.gather", "none", *arguments]


def begun(data: SmallData, folder: Path, stop_after: StopAfter) -> RunPaths:
    stop_after(3)
    assert main(["fit", *command(data, folder)]) == 143
    stop_after.undo()
    return RunPaths(folder / "flannel" / "run_0")


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def calm(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("calm")
    assert main(["fit", *command(small_data, folder)]) == 0
    return bits_of(folder)


def bits_of(folder: Path) -> dict[str, bytes]:
    with flannel_pl.open_recording(folder / "flannel" / "run_0") as recording:
        run = recording.run(0)
        return {name: run.tensor(name)[:].tobytes() for name in run.names}


def other_torch(patch: pytest.MonkeyPatch, folder: Path) -> str:
    real = provenance._version
    patch.setattr(provenance, "_version", lambda name: "9.9" if name == "torch" else real(name))
    return f"versions.torch: {real('torch')} there, 9.9 now"


def other_processor(patch: pytest.MonkeyPatch, folder: Path) -> str:
    name = provenance.cpu_model()["name"]
    (folder / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some other CPU\n\nprocessor\t: 1\n")
    patch.setattr(provenance, "CPU_FACTS", folder / "cpuinfo")
    patch.setattr(provenance, "cpu_model", provenance.cpu_model.__wrapped__)
    return f"cpu.name: {name} there, Some other CPU now"


def other_variable(patch: pytest.MonkeyPatch, folder: Path) -> str:
    patch.setenv("OMP_DYNAMIC", "true")
    return "variables.OMP_DYNAMIC: nothing there, true now"


def other_code(patch: pytest.MonkeyPatch, folder: Path) -> str:
    there = provenance.collect()["source"]
    patch.setattr(provenance, "_code", lambda: {"git": None, "source": "0" * 16})
    return f"source: {there} there, {'0' * 16} now"


def other_setting(patch: pytest.MonkeyPatch, folder: Path) -> str:
    patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    return "settings.float32_matmul_precision: highest there, medium now"


@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_what_a_deterministic_trainer_sets_is_no_other_environment(
    small_data: SmallData,
    tmp_path: Path,
    stop_after: StopAfter,
    monkeypatch: pytest.MonkeyPatch,
    deterministic: str,
) -> None:
    """The file of a run on CUDA has a variable that nobody had set before there was a Trainer."""
    given = command(small_data, tmp_path, "--trainer.deterministic", deterministic)
    with monkeypatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        patch.setattr(environments, "VARIABLES", (*environments.VARIABLES, *environments.CUDA_VARIABLES))
        stop_after(3)
        assert main(["fit", *given]) == 143
        stop_after.undo()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    experiment, slot = ResolvedExperiment.from_config(resolve(given)), Slot("cuda", 0, 1)
    if deterministic == "true":
        check_environments(experiment, experiment.runs, slot)
        return
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG: :4096:8 there, nothing now"):
        check_environments(experiment, experiment.runs, slot)


OTHERS = [other_torch, other_processor, other_variable, other_code, other_setting]


@pytest.mark.parametrize("other", OTHERS)
def test_another_environment_is_refused_and_with_an_option_written_down(
    small_data: SmallData,
    tmp_path: Path,
    stop_after: StopAfter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calm: dict[str, bytes],
    other: Callable[[pytest.MonkeyPatch, Path], str],
) -> None:
    paths = begun(small_data, tmp_path / "runs", stop_after)
    before = content_of(paths.folder)
    with monkeypatch.context() as patch:
        difference = other(patch, tmp_path)
        verbs = ["fit"] if other is other_setting else ["plan", "fit"]  # a Trainer may change a setting
        for verb in verbs:
            capsys.readouterr()
            assert main([verb, *command(small_data, tmp_path / "runs")]) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert f"{paths.folder} was begun in another environment, which can change bits" in error
            assert difference in error
            assert "--launch.mix_environments true" in error
        left = content_of(paths.folder)
        for path in (paths.config, paths.log):
            left.pop(path), before.pop(path)
        assert left == before
        mixing = command(small_data, tmp_path / "runs", "--launch.mix_environments", "true")
        assert main(["fit", *mixing]) == 0
    assert bits_of(tmp_path / "runs") == calm
    with flannel_pl.open_recording(paths.folder) as recording:
        first, second = recording.run(0).attempts
    assert (first.first_row, second.first_row) == (0, 4)
    assert first.environment != second.environment
    capsys.readouterr()
    assert main(["info", str(paths.folder)]) == 0
    shown = capsys.readouterr().out
    assert "run 0, attempt 2         from row 4 on" in shown
    key, _, values = difference.partition(": ")
    there, _, now = values.removesuffix(" now").partition(" there, ")
    changed = [line.split(maxsplit=1) for line in shown.splitlines() if line.endswith(" before")]
    assert [key, f"{now}, {there} before"] in changed


@pytest.mark.parametrize("name", ["OMP_THREAD_LIMIT", "OMP_MAX_ACTIVE_LEVELS", "TORCH_LINEAR_FLATTEN_3D"])
def test_a_variable_that_limits_threads_or_chooses_kernels_is_another_environment(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = environments.host_environment("cpu")
    monkeypatch.setenv(name, "1")
    now = environments.host_environment("cpu")
    assert environment_changes(before, now) == [f"variables.{name}: nothing there, 1 now"]


def test_another_host_time_and_command_are_no_other_environment(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = begun(small_data, tmp_path, stop_after)
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    monkeypatch.setattr(sys, "argv", ["another", "command"])
    assert main(["fit", *command(small_data, tmp_path)]) == 0
    attempts = attempts_of(read_layout(paths.recording).flannel)
    assert [one.environment["host"] == "elsewhere" for one in attempts] == [False, True]
    assert attempts[1].environment["command"] == ["another", "command"]
    assert attempts[1].environment["versions"] == attempts[0].environment["versions"]


def test_what_can_change_bits_is_recorded(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter
) -> None:
    paths = begun(small_data, tmp_path, stop_after)
    assert main(["fit", *command(small_data, tmp_path)]) == 0
    attempts = attempts_of(read_layout(paths.recording).flannel)
    events = read_events(tmp_path / "flannel" / "events.jsonl")
    started = [event for event in events if event["event"] == "training_started"]
    assert [(event["run"], event["attempt"], event["first_row"]) for event in started] == [
        (0, 1, 0),
        (0, 2, 4),
    ]
    assert [event["environment"] for event in started] == [one.environment for one in attempts]
    environment = attempts[1].environment
    assert environment["versions"]["torch"] == importlib.metadata.version("torch")
    assert environment["device"] == "cpu"
    assert environment["cpu"]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert environment["device_name"] == environment["cpu"]["name"]
    assert environment["threads"] == 1
    assert environment["settings"]["deterministic_algorithms"] is False
    assert environment["settings"]["float32_matmul_precision"] == "highest"
    assert environment["git"] is None or len(environment["git"]["commit"]) == 40


def test_the_journal_counts_every_start(small_data: SmallData, tmp_path: Path, stop_after: StopAfter) -> None:
    paths = begun(small_data, tmp_path, stop_after)
    for attempt in (1, 2):
        assert read_journal(paths)["attempt"] == attempt
        stop_after(3 + attempt)
        assert main(["fit", *command(small_data, tmp_path)]) == 143
        stop_after.undo()


def read_journal(paths: RunPaths) -> dict[str, Any]:
    entries = [
        slot[21 : slot.rindex("}") + 1] for slot in paths.journal.read_text().split("\n") if "}" in slot
    ]
    return max((json.loads(entry) for entry in entries), key=lambda entry: entry["updated_s"])


def test_a_run_begun_by_an_earlier_version_goes_on(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, calm: dict[str, bytes]
) -> None:
    paths = begun(small_data, tmp_path, stop_after)
    old: dict[str, Any] = {
        "versions": {"torch": importlib.metadata.version("torch")},
        "python": platform.python_version(),
    }
    old |= {"host": "old", "device": "cpu", "device_name": "x86_64", "threads": 1, "git": None}
    make_old(paths.partial, old)
    assert main(["fit", *command(small_data, tmp_path)]) == 0
    assert bits_of(tmp_path) == calm
    metadata = read_layout(paths.recording).flannel
    assert metadata["provenance"]["host"] == "old"
    assert [one.first_row for one in attempts_of(metadata)] == [0, 4]
    assert attempts_of(metadata)[1].environment["host"] != "old"


@pytest.fixture
def cpu_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(provenance, "CPU_FACTS", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    provenance.cpu_model.cache_clear()
    yield tmp_path / "cpuinfo"
    provenance.cpu_model.cache_clear()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            "processor : 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654\n\nmodel name : B\n",
            {"name": "AMD EPYC 9654", "family": "25", "model": "17"},
        ),
        ("processor : 0\nCPU part\t: 0xd40\n", {"name": "riscv64", "model": "0xd40"}),
        (None, {"name": "riscv64"}),
    ],
)
def test_the_model_of_the_processor(cpu_facts: Path, facts: str | None, expected: dict[str, str]) -> None:
    if facts is not None:
        cpu_facts.write_text(facts)
    assert provenance.cpu_model() == expected


def test_the_model_of_the_processor_on_macos(cpu_facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(provenance, "_output", lambda *command: "Apple M3" if "sysctl" in command else "")
    assert provenance.cpu_model() == {"name": "Apple M3"}


def test_the_code_that_decides_bits(tmp_path: Path) -> None:
    for name in ("training/step.py", "corpus/words.py", "analysis/report.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    before = provenance.source_digest(tmp_path)
    (tmp_path / "analysis" / "report.py").write_text("changed")
    assert provenance.source_digest(tmp_path) == before
    (tmp_path / "training" / "step.py").write_text("changed")
    assert provenance.source_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("said", "driver"),
    [
        ("NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23", "570.86.15"),
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (builder@)", "580.159.04"),
        ("NVIDIA UNIX Open Kernel Module for aarch64  550.54  Release Build", "550.54"),
        ("something else", None),
    ],
)
def test_a_gpu_is_asked_for_its_model_driver_and_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, driver: str | None
) -> None:
    (tmp_path / "version").write_text(f"NVRM version: {said}\nGCC version: gcc version 12.3.0 (GCC)\n")
    monkeypatch.setattr(environments, "DRIVER_FACTS", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU number {device.index}")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    found = environments.environment(torch.device("cuda", 1), name="cuda:5")
    assert (found["device"], found["device_name"]) == ("cuda:5", "GPU number 1")
    assert found["cuda"]["driver"] == driver
    assert found["variables"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert {"runtime", "cudnn", "attention"} <= found["cuda"].keys()
    assert "CUBLAS_WORKSPACE_CONFIG" not in environments.environment(torch.device("cpu"))["variables"]


def test_a_setting_that_torch_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> str:
        raise RuntimeError("a mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    assert environments.environment(torch.device("cpu"))["settings"]["float32_matmul_precision"] is None
