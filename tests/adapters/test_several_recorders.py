"""Several recorders of one Lightning or transformers training, and one Trainer that trains several times."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from torch import Tensor
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.errors import UserError
from flannel_pl.quantities import HiddenMean
from tests.adapters.plain import Bigrams, Counts, loss_of, sgd, windows
from tests.adapters.test_three_trainers import columns_of
from tests.adapters.three_trainers import Case, trainer_of

E = {"E": "table.weight"}


class Module(pl.LightningModule):
    """The small net."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Bigrams()

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return loss_of(self.net, batch)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self)


class Trips(pl.Callback):
    @override
    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            raise ArithmeticError("trip")


def fit(*callbacks: Any, module: Any = None, ckpt_path: Any = None) -> Any:
    trainer = pl.Trainer(
        max_steps=6,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    loader: Any = torch.utils.data.DataLoader(windows(6), batch_size=None)  # type: ignore[arg-type]
    module = module or Module()
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return module


def differing(*folders: Path) -> list[str]:
    one, other = map(columns_of, folders)
    return [name for name in one if one[name].tobytes() != other[name].tobytes()]


@pytest.mark.filterwarnings("ignore")
def test_two_in_lightning_go_on_each_with_its_own(tmp_path: Path) -> None:
    def both(where: str) -> list[StepRecorder]:
        return [
            StepRecorder(tmp_path / where / "a", "table.weight", quantities=[Counts(100), HiddenMean()]),
            StepRecorder(
                tmp_path / where / "b",
                "table.weight",
                quantities=[Counts(), HiddenMean()],
                checkpoint_every=2,
            ),
        ]

    module = fit(*both("whole"))
    assert "training_step" not in vars(module)
    assert not module.net.norm._forward_hooks
    with pytest.raises(ArithmeticError):
        fit(*both("cut"), Trips())
    (checkpoint,) = (tmp_path / "cut" / "b").glob("checkpoint-2-*.ckpt")
    fit(*both("cut"), ckpt_path=checkpoint)
    assert columns_of(tmp_path / "cut" / "a")["count"].tolist() == [0, *range(101, 107)]
    assert differing(tmp_path / "whole" / "a", tmp_path / "whole" / "b") == ["checksums", "count"]
    assert columns_of(tmp_path / "cut" / "b")["count"].tolist() == [*range(7)]


class ByHand(Module):
    """Which optimizes by hand, and records itself."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.automatic_optimization, self.folder = False, folder

    @override
    def on_train_start(self) -> None:
        stepper: Any = self.optimizers()
        self.stepper = stepper
        self.recorder = flannel_pl.Recorder(self.folder, self.net, stepper, parameters=E).__enter__()

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
        self.stepper.zero_grad()
        loss = loss_of(self.net, batch)
        self.manual_backward(loss)
        self.recorder.before_step()
        self.stepper.step()
        self.recorder.after_step(loss=loss)

    @override
    def on_train_end(self) -> None:
        self.recorder.__exit__(None, None, None)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_that_optimizes_by_hand(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path / "a", "table.weight"))
    fit(module=ByHand(tmp_path / "b"))
    assert differing(tmp_path / "a", tmp_path / "b") == []


@pytest.mark.filterwarnings("ignore")
def test_a_copy_of_a_lightning_module_trains_itself(tmp_path: Path) -> None:
    class Copies(pl.Callback):
        @override
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            other = copy.deepcopy(pl_module)
            other.net.head.bias.data += 1000 * torch.rand(12)
            assert other.training_step(windows()[0], 0) > 10

    fit(StepRecorder(tmp_path / "a", "table.weight", quantities=[HiddenMean()]), Copies())
    fit(StepRecorder(tmp_path / "b", "table.weight", quantities=[HiddenMean()]))
    assert differing(tmp_path / "a", tmp_path / "b") == []


@pytest.mark.filterwarnings("ignore")
def test_token_sets_of_a_data_module_may_be_lists(tmp_path: Path) -> None:
    class Data(pl.LightningDataModule):
        token_sets = {"dead": [3, 1]}  # noqa: RUF012

        @override
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(windows(2), batch_size=None)  # type: ignore[arg-type]

    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepRecorder(tmp_path, "table.weight", tokens="dead")],
    )
    trainer.fit(Module(), Data())
    assert columns_of(tmp_path)["recorded_tokens"].tolist() == [1, 3]


def test_two_of_one_transformers_trainer(tmp_path: Path) -> None:
    trainer = trainer_of(Case(), tmp_path / "out", save_strategy="steps", save_steps=2)
    for name, start in (("a", 0), ("b", 100)):
        flannel_pl.hf.record(trainer, tmp_path / name, parameters=E, quantities=[Counts(start)])
    trainer.train()
    assert not {"train", "training_step", "compute_loss"} & vars(trainer).keys()
    a, b = columns_of(tmp_path / "a"), columns_of(tmp_path / "b")
    assert (b.pop("count")[1:] - a.pop("count")[1:]).tolist() == [100] * 5
    assert all(a[name].tobytes() == b[name].tobytes() for name in a.keys() - {"checksums"})
    files = [tmp_path / "out" / "checkpoint-4" / name for name in ("flannel_pl.pt", "flannel_pl_1.pt")]
    assert [torch.load(file)["quantities"] for file in files] == [[{"count": 4}], [{"count": 104}]]


def test_the_next_training_of_a_trainer_is_recorded_and_no_other(tmp_path: Path) -> None:
    trainer = trainer_of(Case(), tmp_path / "out")
    flannel_pl.hf.record(trainer, tmp_path / "a", parameters=E)
    trainer.train()
    trainer.train()
    flannel_pl.hf.record(trainer, tmp_path / "b", parameters=E)
    trainer.train()
    assert columns_of(tmp_path / "b")["losses"].shape == (6,)


def test_a_recorder_that_is_taken_out_records_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(Case(), tmp_path / "out")
    trainer.remove_callback(flannel_pl.hf.record(trainer, tmp_path / "a", parameters=E))
    trainer.train()
    assert not (tmp_path / "a").exists()
    assert "train" not in vars(trainer)


class NoRoom(transformers.Trainer):
    """Whose first batch has no room in memory."""

    has_failed = False

    @override
    def training_step(self, *arguments: Any, **options: Any) -> Any:
        if not self.has_failed:
            self.has_failed = True
            raise RuntimeError("CUDA out of memory. It was too large")
        return super().training_step(*arguments, **options)


def test_a_training_that_begins_anew_with_smaller_batches(tmp_path: Path) -> None:
    trainer = trainer_of(Case(), tmp_path / "out", auto_find_batch_size=True, per_device_train_batch_size=4)
    trainer.__class__ = type("Small", (NoRoom, type(trainer)), {})
    flannel_pl.hf.record(trainer, tmp_path / "a", parameters=E)
    trainer.train()
    assert columns_of(tmp_path / "a")["losses"].shape == (6,)
    assert not {"train", "training_step", "compute_loss"} & vars(trainer).keys()


class Swaps(transformers.TrainerCallback):
    """Gives the Trainer another optimizer."""

    trainer: Any = None

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            accelerator = self.trainer.accelerator
            self.trainer.optimizer = accelerator.prepare(sgd(self.trainer.model))


def test_another_optimizer_of_a_trainer_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(Case(), tmp_path / "out")
    swaps = Swaps()
    swaps.trainer = trainer
    trainer.add_callback(swaps)
    flannel_pl.hf.record(trainer, tmp_path / "a", parameters=E)
    with pytest.raises(UserError, match="the Trainer has another optimizer than when training started"):
        trainer.train()
    with flannel_pl.open_recording(tmp_path / "a", unfinished=True) as recording:
        assert recording.run(0).num_rows == 3


def test_a_checkpoint_that_was_killed_before_its_quantities_is_refused(tmp_path: Path) -> None:
    class Trip(transformers.TrainerCallback):
        @override
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                raise ArithmeticError("trip")

    for trip in (True, False):
        trainer = trainer_of(Case(), tmp_path / "out", save_strategy="steps", save_steps=2)
        flannel_pl.hf.record(trainer, tmp_path / "a", parameters=E, quantities=[Counts()])
        if trip:
            trainer.add_callback(Trip())
            with pytest.raises(ArithmeticError):
                trainer.train()
            (tmp_path / "out" / "checkpoint-4" / "flannel_pl.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint of step 4 has nothing of what quantities remember"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert columns_of(tmp_path / "a")["count"].tolist() == [0, 1, 2, 3, 4, 5]
