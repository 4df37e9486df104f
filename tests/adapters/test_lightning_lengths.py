"""How long a Lightning training is: from its epochs, or known by nobody, or ended early."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.info import describe_recording
from tests.training.test_recorder import Bigram, batches, bits_of, fit


class Endless(torch.utils.data.IterableDataset[Tensor]):
    """Data of which nobody knows how many there are."""

    def __init__(self, number: int) -> None:
        self.number = number

    @override
    def __iter__(self) -> Iterator[Tensor]:
        return iter(batches(64)[: self.number])


def fit_endless(folder: Path, *, number: int, module: Any = None, **settings: Any) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.callbacks.append(StepRecorder(folder, "table.weight"))  # type: ignore[attr-defined]
    loader: Any = torch.utils.data.DataLoader(Endless(number), batch_size=None)
    trainer.fit(module or Bigram(), loader)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 128), (3, 44)])
def test_epochs_alone_are_a_number_of_steps(tmp_path: Path, accumulate: int, steps: int) -> None:
    fit(StepRecorder(tmp_path, "table.weight"), steps=-1, max_epochs=2, accumulate_grad_batches=accumulate)
    assert verify(tmp_path).ok
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).num_rows == 1 + steps
        assert "ended" not in recording.run(0).metadata


@pytest.mark.filterwarnings("ignore")
def test_data_without_a_length(tmp_path: Path) -> None:
    fit_endless(tmp_path / "a", number=7, max_epochs=2, gradient_clip_val=0.01)
    assert verify(tmp_path / "a").ok
    words = "ended at step 14 (max_epochs 2), of a number that was not known before"
    assert words in describe_recording(tmp_path / "a")
    fit_endless(tmp_path / "b", number=7, max_steps=14, gradient_clip_val=0.01)
    with flannel_pl.open_recording(tmp_path / "b") as recording:
        assert "ended" not in recording.run(0).metadata
    assert bits_of(tmp_path / "a") == bits_of(tmp_path / "b")


class Logs(Bigram):
    """Whose loss stops falling."""

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        self.log("loss", float(self.trainer.current_epoch > 1))
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore")
def test_early_stopping_with_epochs(tmp_path: Path) -> None:
    stopping: Callback = EarlyStopping("loss", patience=1, check_on_train_epoch_end=True)
    fit_endless(tmp_path, number=4, max_epochs=9, module=Logs(), callbacks=[stopping])
    assert verify(tmp_path).ok
    with flannel_pl.open_recording(tmp_path) as recording:
        ended = recording.run(0).metadata["ended"]
    assert ended["planned_steps"] is None
    assert ended["step"] == recording.run(0).metadata["num_rows"] - 1
    assert "EarlyStopping: Monitored metric loss did not improve" in ended["reason"]


class Trips(Callback):
    @override
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 70:
            raise ArithmeticError("trip")


def test_epochs_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    def recorder(name: str) -> StepRecorder:
        return StepRecorder(tmp_path / name, "table.weight", checkpoint_every=30)

    fit(recorder("whole"), steps=-1, max_epochs=2)
    with pytest.raises(ArithmeticError):
        fit(recorder("cut"), steps=-1, max_epochs=2, callbacks=(Trips(),))
    (checkpoint,) = (tmp_path / "cut").glob("checkpoint-60-*.ckpt")
    fit(recorder("cut"), steps=-1, max_epochs=2, ckpt_path=checkpoint)
    assert verify(tmp_path / "cut").ok
    with flannel_pl.open_recording(tmp_path / "cut") as recording:
        assert recording.run(0).num_rows == 129
