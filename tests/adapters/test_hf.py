"""`transformers.Trainer`: the notebook's own training, evaluation in between, going on, and early ends."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from typing_extensions import override

import flannel_pl
from flannel_pl.errors import UserError
from flannel_pl.quantities import HiddenMean
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.info import describe_recording
from tests.adapters.plain import Counts
from tests.adapters.test_three_trainers import columns_of
from tests.adapters.three_trainers import Case, batches, in_a_loop, trainer_of
from tests.conftest import SmallData
from tests.training import notebook_reference
from tests.training.test_fidelity import assert_same_bits

E = {"E": "table.weight"}


def test_the_notebooks_own_training_has_the_notebooks_rows(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorded(notebook_reference.RecordingTrainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            flannel_pl.hf.record(
                self, tmp_path / "run", parameters="transformer.wte.weight", dtypes={"logits": "bfloat16"}
            )

    monkeypatch.setattr(notebook_reference, "RecordingTrainer", Recorded)
    tokens = np.random.default_rng(3).integers(0, 40, 200)
    expected = notebook_reference.notebook_recording(
        tokens, seed=43, max_steps=6, output_dir=tmp_path / "out", vocab_size=50, hidden_dim=8, max_seq_len=16
    )
    assert_same_bits(tmp_path / "run" / "recording.safetensors", expected)
    assert verify(tmp_path / "run").ok
    with flannel_pl.open_recording(tmp_path / "run") as recording:
        assert recording.seeds == (43,)


def trained(folder: Path, case: Case, *, callbacks: Any = (), options: Any = None, **arguments: Any) -> Any:
    trainer = trainer_of(case, folder.with_name(f"{folder.name}_out"), **arguments)
    for callback in callbacks:
        trainer.add_callback(callback)
    flannel_pl.hf.record(trainer, folder, **{"parameters": E, **(options or {})})
    trainer.train()
    return trainer


def test_an_evaluation_in_between_is_not_heard(tmp_path: Path) -> None:
    class Evaluates(transformers.TrainerCallback):
        trainer: Any = None

        @override
        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.trainer.model.eval()
            inputs = batches(Case())[0]
            with torch.no_grad():
                self.trainer.compute_loss(self.trainer.model, inputs)
            self.trainer.model.train()

    quantities = {"quantities": [HiddenMean()]}
    case = Case()
    callback = Evaluates()
    trainer = trainer_of(case, tmp_path / "out")
    callback.trainer = trainer
    trainer.add_callback(callback)
    flannel_pl.hf.record(trainer, tmp_path / "hf", parameters=E, **quantities)
    trainer.train()
    in_a_loop(Case(options={"quantities": [HiddenMean()]}), tmp_path / "loop")
    found, expected = columns_of(tmp_path / "hf"), columns_of(tmp_path / "loop")
    assert found["hidden_mean"].tobytes() == expected["hidden_mean"].tobytes()
    assert np.isfinite(found["hidden_mean/spread"][1:]).all()


def test_the_trainer_is_as_it_was_afterwards(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "a", Case())
    assert not {"training_step", "compute_loss"} & vars(trainer).keys()
    assert not trainer.model._forward_hooks
    plain = trainer_of(Case(), tmp_path / "plain")
    plain.train()
    nets: Any = trainer.model, plain.model
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)


class Trip(transformers.TrainerCallback):
    """Breaks off."""

    @override
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            raise ArithmeticError("trip")


@pytest.mark.parametrize("which", [True, "checkpoint-2"])
def test_it_goes_on_from_a_checkpoint_of_the_trainer(tmp_path: Path, which: Any) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    case, folder, output = Case(), tmp_path / "cut", tmp_path / "cut_out"
    with pytest.raises(ArithmeticError):
        trained(folder, case, callbacks=[Trip()], options={"quantities": [Counts()]}, **saving)
    assert (folder / "recording.partial").exists()
    trainer = trainer_of(case, output, **saving)
    flannel_pl.hf.record(trainer, folder, parameters=E, quantities=[Counts()])
    with pytest.raises(UserError, match=r"go on with it \(trainer.train\(resume_from_checkpoint=\.\.\.\)\)"):
        trainer.train()
    trainer = trainer_of(case, output, **saving)
    flannel_pl.hf.record(trainer, folder, parameters=E, quantities=[Counts()])
    trainer.train(resume_from_checkpoint=which if which is True else str(output / which))
    trained(tmp_path / "whole", case, options={"quantities": [Counts()]}, **saving)
    cut, whole = columns_of(folder), columns_of(tmp_path / "whole")
    assert whole["count"].tolist() == [0, 1, 2, 3, 4, 5]
    assert all(whole[name].tobytes() == cut[name].tobytes() for name in whole)


class Stops(transformers.TrainerCallback):
    """Stops early."""

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 3


def test_an_early_end_says_so(tmp_path: Path) -> None:
    trained(tmp_path / "a", Case(), callbacks=[Stops()])
    assert columns_of(tmp_path / "a")["embeddings"].shape[0] == 4
    assert "ended early at step 3 of 5 (a callback stopped it)" in describe_recording(tmp_path / "a")


def test_a_number_of_epochs_is_a_number_of_steps(tmp_path: Path) -> None:
    trained(tmp_path / "a", Case(), max_steps=-1, num_train_epochs=2)
    assert columns_of(tmp_path / "a")["embeddings"].shape[0] == 11
    assert "ended" not in describe_recording(tmp_path / "a")


def test_what_cannot_be_recorded_is_refused_before_training(tmp_path: Path) -> None:
    trainer = trainer_of(Case(), tmp_path / "out")
    with pytest.raises(UserError, match=r"no parameter is named to record; the model has head\.bias"):
        flannel_pl.hf.record(trainer, tmp_path / "a")
    flannel_pl.hf.record(trainer, tmp_path / "a", parameters="tabel.weight")
    with pytest.raises(UserError, match=r"no parameter 'tabel\.weight' to record; it has head"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not (tmp_path / "a" / "recording.partial").exists()
    with pytest.raises(UserError, match=r"no parameter 'tabel\.weight' to record; it has head"):
        trainer.train()  # never silently without a recording
    flannel_pl.hf.record(trainer, tmp_path / "a", parameters="table.weight")
    trainer.train()
    assert verify(tmp_path / "a").ok
    trained(tmp_path / "b", Case())
    with pytest.raises(UserError, match=r"recording\.safetensors exists, and a recording is never"):
        trained(tmp_path / "b", Case())
