"""A run goes on from its checkpoints with the bits of an undisturbed one, or says why it cannot."""

import json
from pathlib import Path

import pytest
from lightning.pytorch import Callback

import flannel_pl
import flannel_pl.recording.formats.safetensors.layout
from flannel_pl.__main__ import main
from flannel_pl.adapters.lightning import recorder as recorder_module
from flannel_pl.errors import Interrupted
from flannel_pl.experiment import RunPaths
from tests.conftest import SmallData

STEPS = 30

SCALED = json.dumps(
    [
        {
            "class_path": "lightning.pytorch.plugins.MixedPrecision",
            "init_args": {
                "precision": "16-mixed",
                "device": "cpu",
                "scaler": {
                    "class_path": "torch.amp.GradScaler",
                    "init_args": {"device": "cpu", "init_scale": 2.0**24, "growth_interval": 2},
                },
            },
        }
    ]
)
"""Half precision on the CPU, with a loss scaler that leaves out many steps, the first ones among them."""


def fit(data: SmallData, folder: Path, *arguments: str) -> int:
    words = ["fit", *data.arguments, "--trainer.max_steps", str(STEPS), "--launch.checkpoint_every", "5"]
    words += ["--launch.threads_per_run", "1", "--trainer.enable_progress_bar", "false"]
    return main([*words, "--experiment.output_dir", str(folder), "--experiment.gather", "none", *arguments])


def bits_of(folder: Path) -> dict[str, bytes]:
    with flannel_pl.open_recording(folder / "flannel" / "run_0") as recording:
        run = recording.run(0)
        return {name: run.tensor(name)[:].tobytes() for name in run.names}


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> "StopAfter":
    return StopAfter(monkeypatch)


class StopAfter:
    """Lets training be asked to stop in a certain step, as by a signal, or fail there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, step: int, *, crash: bool = False) -> None:
        original = recorder_module.StepRecorder.on_before_optimizer_step

        def hook(
            self: recorder_module.StepRecorder, trainer: object, module: object, optimizer: object
        ) -> None:
            if trainer.global_step + 1 == step:  # type: ignore[attr-defined]
                if crash:
                    raise ZeroDivisionError("crashed on request")
                self.stop_signal = 15
            original(self, trainer, module, optimizer)  # type: ignore[arg-type]

        self.monkeypatch.setattr(recorder_module.StepRecorder, "on_before_optimizer_step", hook)

    def undo(self) -> None:
        self.monkeypatch.undo()


OPTIONS = [
    pytest.param([], id="plain"),
    pytest.param(["--trainer.accumulate_grad_batches", "3"], id="accumulate"),
    pytest.param(["--recorder.every_n_steps", "4"], id="every-4th"),
    pytest.param(["--data.batch_size", "400", "--trainer.log_every_n_steps", "1"], id="several-epochs"),
    pytest.param(["--model.param_dtype", "float32", "--recorder.tokens", "dead"], id="float32-dead"),
    pytest.param(
        ["--trainer.precision", "null", "--trainer.plugins", SCALED, "--model.param_dtype", "float32"],
        id="skipped-steps",
    ),
    pytest.param(["--trainer.callbacks+=EMAWeightAveraging"], id="averaged"),
]


@pytest.mark.filterwarnings("ignore:.*WeightAveraging callback with a model that overrides")
@pytest.mark.parametrize("options", OPTIONS)
def test_stopped_twice_and_gone_on(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, options: list[str]
) -> None:
    assert fit(small_data, tmp_path / "calm", *options) == 0
    assert set(bits_of(tmp_path / "calm").get("skipped", b"\0\1")) == {0, 1}
    for step in (7, 18):
        stop_after(step)
        assert fit(small_data, tmp_path / "stopped", *options) == 143
        stop_after.undo()
        paths = RunPaths(tmp_path / "stopped" / "flannel" / "run_0")
        assert paths.checkpoints()[0][0] == step
        assert not paths.recording.exists()
    assert fit(small_data, tmp_path / "stopped", *options) == 0
    assert bits_of(tmp_path / "stopped") == bits_of(tmp_path / "calm")


def test_a_crash_between_checkpoints_goes_back_to_the_last_one(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(small_data, tmp_path / "calm") == 0
    stop_after(13, crash=True)
    assert fit(small_data, tmp_path / "crashed") == 1
    stop_after.undo()
    assert "ZeroDivisionError: crashed on request" in capsys.readouterr().err
    assert fit(small_data, tmp_path / "crashed") == 0
    assert "going on after step 10" in capsys.readouterr().err
    assert bits_of(tmp_path / "crashed") == bits_of(tmp_path / "calm")


def stopped_run(data: SmallData, folder: Path, stop_after: StopAfter) -> RunPaths:
    stop_after(13)
    assert fit(data, folder) == 143
    stop_after.undo()
    paths = RunPaths(folder / "flannel" / "run_0")
    assert [step for step, _, _ in paths.checkpoints()] == [13, 10]
    return paths


def flip_bit(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


SAID = {
    "newest checkpoint": "is damaged; trying the checkpoint before it",
    "both checkpoints": "the run starts from its beginning",
    "truncated checkpoint": "is damaged; trying the checkpoint before it",
    "row 12": "12 good rows, too few",
    "row 3": "the run starts from its beginning",
    "header": "the run starts from its beginning",
    "truncated rows": "the run starts from its beginning",
}


@pytest.mark.parametrize("damage", SAID)
def test_damage_is_noticed_and_never_becomes_wrong_rows(
    small_data: SmallData,
    tmp_path: Path,
    stop_after: StopAfter,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    assert fit(small_data, tmp_path / "calm") == 0
    paths = stopped_run(small_data, tmp_path / "hurt", stop_after)
    (_, _, newest), (_, _, older) = paths.checkpoints()
    layout = flannel_pl.recording.formats.safetensors.layout.read_layout(paths.partial)
    row_bytes = layout.tensors["embeddings"].num_bytes // (STEPS + 1)
    if damage in ("newest checkpoint", "both checkpoints"):
        flip_bit(newest, 1000)
    if damage == "both checkpoints":
        flip_bit(older, newest.stat().st_size // 2)
    if damage == "truncated checkpoint":
        newest.write_bytes(newest.read_bytes()[:-1])
    if damage.startswith("row "):
        flip_bit(paths.partial, layout.offsets["embeddings"] + int(damage[4:]) * row_bytes + 5)
    if damage == "header":
        flip_bit(paths.partial, 40)
    if damage == "truncated rows":
        paths.partial.write_bytes(paths.partial.read_bytes()[:-100])
    capsys.readouterr()
    assert fit(small_data, tmp_path / "hurt") == 0
    assert SAID[damage] in capsys.readouterr().err
    assert bits_of(tmp_path / "hurt") == bits_of(tmp_path / "calm")


def test_a_finished_run_keeps_its_last_checkpoint_and_nothing_else(
    small_data: SmallData, tmp_path: Path
) -> None:
    assert fit(small_data, tmp_path) == 0
    paths = RunPaths(tmp_path / "flannel" / "run_0")
    assert [step for step, _, _ in paths.checkpoints()] == [STEPS]
    assert not paths.partial.exists()
    assert not paths.lock.exists()


def test_a_finished_runs_checkpoint_holds_the_trained_model(small_data: SmallData, tmp_path: Path) -> None:
    assert fit(small_data, tmp_path) == 0
    ((_, _, path),) = RunPaths(tmp_path / "flannel" / "run_0").checkpoints()
    model = flannel_pl.TiedGPT2.load_from_checkpoint(path, weights_only=True)
    with flannel_pl.open_recording(tmp_path / "flannel" / "run_0", framework="pt") as recording:
        assert model.get_parameter(flannel_pl.TiedGPT2.EMBEDDING).equal(recording.run(0).embeddings[-1])


def test_interruption_says_its_signal() -> None:
    assert str(Interrupted(15)) == "SIGTERM"


OTHER_WEIGHTS = "its weights are not those that recording.partial has of step 8"


def two_stopped_runs(data: SmallData, folder: Path, stop_after: StopAfter, *arguments: str) -> list[RunPaths]:
    """Stops two runs after step 7, each with a checkpoint of that step."""
    stop_after(8)
    for run in ("0", "1"):
        with pytest.raises(Interrupted):
            fit_debug(data, folder, "--experiment.seeds", "7..8", "--experiment.run", run, *arguments)
    stop_after.undo()
    return [RunPaths(folder / "flannel" / f"run_{run}") for run in (0, 1)]


def fit_debug(data: SmallData, folder: Path, *arguments: str) -> None:
    if (code := fit(data, folder, *arguments)) > 128:
        raise Interrupted(code - 128)


@pytest.mark.parametrize(
    ("arguments", "is_old", "words"),
    [
        ((), False, "its run is 0, expected 1; its seed is 7, expected 8"),
        ((), True, "its weights are not those that recording.partial has of step 8"),
        (
            ("--recorder.tokens", "dead"),
            True,
            "its weights are not those that recording.partial has of step 8",
        ),
        (("--recorder.tensors", "[losses]"), False, "its run is 0, expected 1; its seed is 7, expected 8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    small_data: SmallData,
    tmp_path: Path,
    stop_after: StopAfter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    is_old: bool,
    words: str,
) -> None:
    if is_old:  # one that does not say whose it is
        patched = "on_save_checkpoint"
        monkeypatch.setattr(recorder_module.StepRecorder, patched, Callback.on_save_checkpoint)
    first, second = two_stopped_runs(small_data, tmp_path, stop_after, *arguments)
    (_, _, foreign), *_ = first.checkpoints()
    for _, _, own in second.checkpoints():
        own.unlink()
    (second.folder / foreign.name).write_bytes(foreign.read_bytes())
    partial = second.partial.read_bytes()
    again = ("--experiment.seeds", "7..8", "--experiment.run", "1", *arguments)
    assert fit(small_data, tmp_path, *again) == 2
    message = capsys.readouterr().err
    assert f"{second.folder / foreign.name} does not belong to run 1 (seed 8): {words}" in message
    assert second.partial.read_bytes() == partial
    assert fit(small_data, tmp_path, "--experiment.seeds", "7..8", "--experiment.run", "0", *arguments) == 0


def test_an_unfinished_recording_of_another_run_is_refused(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two_stopped_runs(small_data, tmp_path, stop_after)
    second.partial.write_bytes(first.partial.read_bytes())
    assert fit(small_data, tmp_path, "--experiment.seeds", "7..8", "--experiment.run", "1") == 2
    words = (
        f"{second.partial} does not belong to run 1 (seed 8): its run is 0, expected 1; its seed is 7, expec"
    )
    assert words in capsys.readouterr().err
    assert second.partial.read_bytes() == first.partial.read_bytes()
