"""A recorder in somebody's own script: used again, beside another one, and resumed from any checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.adapters.lightning.checkpointing import Checkpoints
from flannel_pl.config import Config
from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import Run, RunPaths
from flannel_pl.quantities.core.optimizing import OptimizerWatch
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.schema import RECORDABLE
from flannel_pl.recording.writing.writer import RecordingWriter
from flannel_pl.training.checkpoint import RunIdentity, _refuse_other_checkpoint
from tests.training.test_recorder import Bigram, batches, bits_of, fit

STEPS = 6


class Trips(Callback):
    """Ends training with an error after a step, before the recorder comes to its row."""

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise ArithmeticError("trip")


def half(recorder: StepRecorder, module: Bigram | None = None) -> Path:
    """Trains up to step 3, and returns the checkpoint of step 2."""
    with pytest.raises(ArithmeticError):
        fit(recorder, steps=STEPS, module=module, callbacks=(Trips(4),))
    (checkpoint,) = recorder.paths.folder.glob("checkpoint-2-*.ckpt")
    return checkpoint


def recorder_in(folder: Path, **options: Any) -> StepRecorder:
    return StepRecorder(folder, "table.weight", **{"checkpoint_every": 2, **options})


def test_a_recorder_that_an_error_has_interrupted_goes_on(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path / "a")
    fit(recorder, steps=STEPS, ckpt_path=half(recorder))
    assert verify(tmp_path / "a").ok
    with flannel_pl.open_recording(tmp_path / "a") as recording:
        assert recording.run(0).steps.tolist() == list(range(STEPS + 1))


def test_a_recorder_that_has_ended_early_forgets_it(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path / "a")
    fit(recorder, steps=STEPS, max_epochs=1, limit_train_batches=3)
    assert recorder.early_end is not None
    recorder.paths.recording.rename(tmp_path / "first")
    fit(recorder, steps=STEPS)
    assert recorder.early_end is None
    fit(recorder_in(tmp_path / "b"), steps=STEPS)
    assert bits_of(tmp_path / "a") == bits_of(tmp_path / "b")


def test_a_finished_recording_is_not_replaced(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    fit(recorder, steps=2)
    with pytest.raises(
        UserError,
        match=r"recording\.safetensors exists, .* overwritten; .* another folder, or say overwrite=True$",
    ):
        fit(recorder, steps=2)


def test_two_parameters_of_one_training(tmp_path: Path) -> None:
    other = StepRecorder(tmp_path / "head", "head.weight", checkpoint_every=2)
    fit(recorder_in(tmp_path / "table"), steps=STEPS, callbacks=(other,))
    fit(recorder_in(tmp_path / "alone"), steps=STEPS)
    assert bits_of(tmp_path / "table") == bits_of(tmp_path / "alone")
    with flannel_pl.open_recording(tmp_path / "head") as recording:
        assert recording.run(0).num_rows == STEPS + 1


def test_two_recorders_of_one_training_in_one_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is in use by process \d+ on .* \(this process itself\); .* or take another"
    ):
        fit(recorder_in(tmp_path), steps=2, callbacks=(StepRecorder(tmp_path, "head.weight"),))


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    half(recorder_in(tmp_path / "a"))
    module = Bigram()
    nn.init.ones_(module.table.weight)
    others = half(recorder_in(tmp_path / "b"), module)
    before = (tmp_path / "a" / "recording.partial").read_bytes()
    with pytest.raises(
        UserError, match=r"goes on after step 2 with another table\.weight than \S+ has of that step"
    ):
        fit(recorder_in(tmp_path / "a"), steps=STEPS, ckpt_path=others)
    assert (tmp_path / "a" / "recording.partial").read_bytes() == before


def test_a_checkpoint_for_which_rows_are_missing_is_refused(tmp_path: Path) -> None:
    class Saves(Callback):
        @override
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=False)

    half(recorder_in(tmp_path / "a"))
    fit(recorder_in(tmp_path / "b"), steps=STEPS, callbacks=(Saves(),))
    with pytest.raises(
        UserError, match=r"goes on after step 5, but \S+recording\.partial has whole rows only up to step 3"
    ):
        fit(recorder_in(tmp_path / "a"), steps=STEPS, ckpt_path=tmp_path / "own.ckpt")
    assert not (tmp_path / "a" / "recording.safetensors").exists()


def test_another_environment_is_told_in_a_scripts_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = half(recorder_in(tmp_path))
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    with pytest.raises(UserError, match=r"or with label=RunLabel\(mix_environments=True\), and its file"):
        fit(recorder_in(tmp_path), steps=STEPS, ckpt_path=checkpoint)


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec", "ignore:.*does not have many workers")
def test_a_trainer_that_only_evaluates_is_left_alone(tmp_path: Path) -> None:
    class Tested(Bigram):
        def test_step(self, *_: Any) -> None:
            pass

    settings = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    loader: Any = torch.utils.data.DataLoader(batches(2), batch_size=None)  # type: ignore[arg-type]
    trainer = Trainer(accelerator="cpu", callbacks=[recorder_in(tmp_path / "a")], **settings)  # type: ignore[arg-type]
    trainer.test(Tested(), loader, verbose=False)
    assert not (tmp_path / "a").exists()


def test_a_parameter_that_has_no_shape_yet(tmp_path: Path) -> None:
    module = Bigram()
    module.head = nn.LazyLinear(12)
    with pytest.raises(UserError, match=r"head\.weight has no shape yet, because it comes with the first"):
        fit(StepRecorder(tmp_path, "head.weight"), steps=2, module=module)


def test_lightnings_own_averages_are_no_other_runs_weights(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path / "a")
    with pytest.raises(ArithmeticError):
        fit(recorder, steps=STEPS, callbacks=(EMAWeightAveraging(), Trips(5)))
    (checkpoint,) = recorder.paths.folder.glob("checkpoint-4-*.ckpt")
    fit(recorder, steps=STEPS, callbacks=(EMAWeightAveraging(),), ckpt_path=checkpoint)
    with flannel_pl.open_recording(tmp_path / "a") as recording:
        assert np.isfinite(recording.run(0).embeddings[:]).all()


@pytest.mark.parametrize("in_experiment", [False, True])
def test_averages_that_a_training_ends_with_are_no_other_runs_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_experiment: bool
) -> None:
    def trip(*_: Any) -> None:
        raise ArithmeticError("trip")

    early: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 2}
    config = Config.of({"recorder": {"parameter": "table.weight"}})
    whose = RunIdentity(Run(0, 1, {}), config, {})
    monkeypatch.setattr("flannel_pl.recording.writing.writer.RecordingWriter.finish", trip)
    with pytest.raises(ArithmeticError):
        fit(recorder_in(tmp_path), steps=STEPS, callbacks=(EMAWeightAveraging(),), **early)
    monkeypatch.undo()
    ((step, _, checkpoint),) = RunPaths(tmp_path).checkpoints()
    assert step == 4
    if in_experiment:  # as a launch looks for what to go on from
        _refuse_other_checkpoint(checkpoint, checkpoint.read_bytes(), step, RunPaths(tmp_path).partial, whose)
        return
    callbacks = (EMAWeightAveraging(),)
    fit(recorder_in(tmp_path), steps=STEPS, callbacks=callbacks, ckpt_path=checkpoint, **early)
    assert verify(tmp_path).ok


def test_a_checkpoint_of_an_earlier_version_says_that_training_has_ended(tmp_path: Path) -> None:
    recorder: Any = recorder_in(tmp_path)
    state = {"callbacks": {"StepRecorder": {"ended": "max_epochs 2"}}, "flannel_pl": {"run": 0, "seed": None}}
    recorder.on_load_checkpoint(None, None, state)
    assert recorder._ended == "max_epochs 2"


def test_other_settings_are_told_in_a_scripts_words(tmp_path: Path) -> None:
    checkpoint = half(recorder_in(tmp_path))
    with pytest.raises(
        RunError,
        match=r"other settings or metadata: grads F32 \(7, 12, 3\), now BF16 \(7, 12, 3\)\. Repeat what "
        r"it was begun with, or record into another fol",
    ):
        fit(recorder_in(tmp_path, dtypes={"grads": "bfloat16"}), steps=STEPS, ckpt_path=checkpoint)


class NoLogits(Bigram):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx)["loss"]}


class Evaluates(Bigram):
    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize("kind", [NoLogits, Evaluates])
@pytest.mark.parametrize("every_n_steps", [1, 3])
def test_a_mistake_that_the_first_step_shows_leaves_the_folder_free(
    tmp_path: Path, kind: type[Bigram], every_n_steps: int
) -> None:
    with pytest.raises(UserError):
        fit(
            recorder_in(tmp_path, every_n_steps=every_n_steps, tensors=["embeddings", "logits"]),
            steps=3,
            module=kind(),
            gradient_clip_val=None,
        )
    assert not (tmp_path / "recording.partial").exists()
    fit(recorder_in(tmp_path, tensors=["embeddings"]), steps=3, module=NoLogits())
    assert verify(tmp_path).ok


def test_an_error_of_the_first_step_leaves_nothing_of_a_step_and_a_later_one_keeps_all(
    tmp_path: Path,
) -> None:
    for step in (1, 2):
        with pytest.raises(ArithmeticError):
            fit(recorder_in(tmp_path, checkpoint_every=None), steps=3, callbacks=(Trips(step),))
        assert (tmp_path / "recording.partial").exists() == (step > 1)


@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_an_unfinished_recording_says_from_what_it_can_go_on(
    tmp_path: Path, checkpoint_every: int | None
) -> None:
    recorder = recorder_in(tmp_path, checkpoint_every=checkpoint_every)
    with pytest.raises(ArithmeticError):
        fit(recorder, steps=STEPS, callbacks=(Trips(4),))
    named = [str(path) for path in tmp_path.glob("checkpoint-2-*.ckpt")]
    go_on = f"ckpt_path={named[0]!r}))" if named else "ckpt_path=...)) if you have a checkpoint"
    with pytest.raises(UserError) as caught:
        fit(recorder, steps=STEPS)
    assert str(caught.value).endswith(
        f"go on with it (Trainer.fit(..., {go_on}, move it away, say overwrite=True, or record into another "
        "folder"
    )


def test_a_file_that_somebody_put_in_its_place_is_not_removed(tmp_path: Path) -> None:
    class Swaps(Callback):
        @override
        def on_train_batch_start(self, *_: Any) -> None:
            if not (tmp_path / "recording.partial").exists():  # as long as sizes are not known
                return
            (tmp_path / "recording.partial").rename(tmp_path / "moved")
            (tmp_path / "recording.partial").write_text("another's")
            raise ArithmeticError("trip")

    with pytest.raises(ArithmeticError):
        fit(recorder_in(tmp_path), steps=3, callbacks=(Swaps(),))
    assert (tmp_path / "recording.partial").read_text() == "another's"
    assert (tmp_path / "moved").exists()


def test_what_lacks_nothing_but_its_name_is_kept_when_that_fails_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RunError("no name today")

    monkeypatch.setattr(RecordingWriter, "_publish", fails)
    with pytest.raises(RunError, match="no name today"):
        fit(recorder_in(tmp_path), steps=4)
    (checkpoint,) = tmp_path.glob("checkpoint-4-*.ckpt")
    with pytest.raises(RunError, match="no name today"):
        fit(recorder_in(tmp_path), steps=4, ckpt_path=checkpoint)
    monkeypatch.undo()
    fit(recorder_in(tmp_path), steps=4, ckpt_path=checkpoint)
    assert verify(tmp_path).ok


def test_a_start_that_fails_keeps_what_it_would_have_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RunError("not today")

    checkpoint = half(recorder_in(tmp_path))
    monkeypatch.setattr(Checkpoints, "begin", fails)
    with pytest.raises(RunError, match="not today"):
        fit(recorder_in(tmp_path), steps=STEPS, ckpt_path=checkpoint)
    monkeypatch.undo()
    fit(recorder_in(tmp_path), steps=STEPS, ckpt_path=checkpoint)


def test_a_tensor_that_is_left_out_on_going_on_is_named(tmp_path: Path) -> None:
    checkpoint = half(recorder_in(tmp_path))
    fewer = [name for name in RECORDABLE if name != "variance"]
    with pytest.raises(RunError, match=r"or metadata: columns\.variance .*, now None; own_dtypes\.variance"):
        fit(recorder_in(tmp_path, tensors=fewer), steps=STEPS, ckpt_path=checkpoint)


def test_a_recording_goes_on_with_the_tensors_that_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An earlier version took moments for possible that a frozen parameter never has.
    monkeypatch.setattr(OptimizerWatch, "never_keeps", lambda self, key, parameter=None: False)
    checkpoint = half(recorder_in(tmp_path), Bigram(optimizer="SGD"))
    monkeypatch.undo()
    fit(recorder_in(tmp_path), steps=STEPS, module=Bigram(optimizer="SGD"), ckpt_path=checkpoint)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert {"momentum", "variance"} <= set(recording.run(0).names)


def test_no_tensors_at_all_are_not_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^tensors is empty, expected some of embeddings, "):
        recorder_in(tmp_path, tensors=[])
