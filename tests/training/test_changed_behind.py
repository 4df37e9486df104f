"""What others do to the recorded parameter, the folder and the step: recorded as it is, or refused."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.analysis.measuring.one_run import measure_run
from flannel_pl.analysis.measuring.skipped import skipped_rows
from flannel_pl.errors import UserError
from flannel_pl.recording.writing.journal import Journal
from tests.training.foreign_models import SAM, Case, Module, Net
from tests.training.test_recorder import Bigram, batches, fit


def clamp(module: Any) -> None:
    with torch.no_grad():
        module.table.weight.clamp_(-0.5, 0.5)


def clamp_data(module: Any) -> None:
    module.table.weight.data.clamp_(-0.5, 0.5)


def clamp_by_assignment(module: Any) -> None:
    module.table.weight.data = module.table.weight.data.clamp(-0.5, 0.5)


CHANGES = [clamp, clamp_data, clamp_by_assignment]


def in_hook(name: str, change: Callable[[Any], None]) -> Callback:
    """A callback of the user's that changes weights in one hook."""

    def hook(self: Callback, trainer: Any, module: Any, *_: Any) -> None:
        change(module)

    made: Callback = type("Clamps", (Callback,), {name: hook})()
    return made


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_callback_does_after_the_step_is_recorded(
    tmp_path: Path, change: Callable[[Any], None], is_first: bool
) -> None:
    clamps, recorder = in_hook("on_train_batch_end", change), StepRecorder(tmp_path, "table.weight")
    first, second = (clamps, recorder) if is_first else (recorder, clamps)
    module = Bigram()
    clamp(module)
    fit(first, steps=5, module=module, callbacks=(second,))  # type: ignore[arg-type]
    with flannel_pl.open_recording(tmp_path) as recording:
        weights = recording.run(0).embeddings[:]
    assert np.abs(weights).max() == 0.5
    assert weights[-1].tobytes() == module.table.weight.detach().numpy().tobytes()


LATER = [
    *("on_train_batch_start", "on_before_zero_grad", "on_train_epoch_start"),
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step"),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("hook", LATER)
def test_what_changes_after_its_row_is_refused_by_name(
    tmp_path: Path, hook: str, change: Callable[[Any], None]
) -> None:
    with pytest.raises(
        UserError,
        match=r"table\.weight was changed after its row of step \d was taken, so the gradient of step \d, "
        r"or the step itself, belongs to weights that no row has; it may be the doing of Clamps\. .* "
        r"do it there, or",
    ):
        fit(StepRecorder(tmp_path, "table.weight"), steps=5, callbacks=(in_hook(hook, change),))
    assert not (tmp_path / "recording.safetensors").exists()


def test_what_a_callback_does_before_the_first_step_is_in_row_0(tmp_path: Path) -> None:
    clamps = in_hook("on_train_start", clamp)
    fit(StepRecorder(tmp_path, "table.weight"), steps=2, callbacks=(clamps,))
    with flannel_pl.open_recording(tmp_path) as recording:
        assert np.abs(recording.run(0).embeddings[0]).max() == 0.5


def test_rows_that_are_apart_are_not_held_against_what_lies_between(tmp_path: Path) -> None:
    class ClampsLater(Callback):
        @override
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 1:  # of no row
                clamp(pl_module)

    recorder = StepRecorder(tmp_path, "table.weight", every_n_steps=2)
    fit(recorder, steps=4, callbacks=(ClampsLater(),))
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).steps.tolist() == [0, 2, 4]


def test_weights_that_are_swapped_and_swapped_back_are_the_same(tmp_path: Path) -> None:
    class Swaps(Callback):
        @override
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            kept = pl_module.table.weight.data.clone()
            pl_module.table.weight.data.zero_()
            pl_module.table.weight.data.copy_(kept)

    fit(StepRecorder(tmp_path / "a", "table.weight"), steps=4, callbacks=(Swaps(),))
    fit(StepRecorder(tmp_path / "b", "table.weight"), steps=4)
    with flannel_pl.open_recording(tmp_path / "a") as a, flannel_pl.open_recording(tmp_path / "b") as b:
        assert a.run(0).embeddings[:].tobytes() == b.run(0).embeddings[:].tobytes()


def test_lightnings_weight_averaging_leaves_rows_as_they_are(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path / "a", "table.weight"), steps=4, callbacks=(WeightAveraging(),))
    fit(StepRecorder(tmp_path / "b", "table.weight"), steps=4)
    with flannel_pl.open_recording(tmp_path / "a") as a, flannel_pl.open_recording(tmp_path / "b") as b:
        assert a.run(0).embeddings[:].tobytes() == b.run(0).embeddings[:].tobytes()


def test_an_embedding_that_renormalises_itself_is_refused(tmp_path: Path) -> None:
    module = Module(Case(model=lambda: Net(max_norm=0.5)))
    with pytest.raises(
        UserError, match=r"the doing of the module itself \(an Embedding with max_norm is one"
    ):
        fit(StepRecorder(tmp_path, "net.table.weight"), steps=3, module=module)


def test_a_module_that_changes_it_in_its_own_hook_is_told_of_a_callbacks(tmp_path: Path) -> None:
    class Clamps(Bigram):
        @override
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            clamp(self)

    with pytest.raises(
        UserError, match=r"its own on_train_batch_end another\)\. What a callback \(not the module\) does in "
    ):
        fit(StepRecorder(tmp_path, "table.weight"), steps=3, module=Clamps())


def replace_parameter(module: Any) -> None:
    module.table.weight = nn.Parameter(module.table.weight.detach().clone())


def replace_module(module: Any) -> None:
    module.table = nn.Embedding(12, 3)


def remove_module(module: Any) -> None:
    del module.table


REPLACED = [
    (replace, hook)
    for replace in (replace_parameter, replace_module, remove_module)
    for hook in ("on_train_batch_start", "on_train_batch_end", "on_after_backward")
    if (replace, hook) != (remove_module, "on_train_batch_start")  # the module itself ends training then
]


@pytest.mark.parametrize(("replace", "hook"), REPLACED)
@pytest.mark.parametrize("tensors", [("grads",), ("embeddings", "losses")])
@pytest.mark.parametrize("step", [1, 4])  # in between, and in the last one
def test_a_parameter_that_is_replaced_is_refused(
    tmp_path: Path, replace: Callable[[Any], None], hook: str, tensors: Any, step: int
) -> None:
    def replace_then(module: Any) -> None:
        if module.trainer.global_step == (step if hook == "on_train_batch_end" else step - 1):
            replace(module)

    recorder = StepRecorder(tmp_path, "table.weight", tensors=tensors)
    with pytest.raises(UserError, match=r"table\.weight is another object than when training started"):
        fit(recorder, steps=4, callbacks=(in_hook(hook, replace_then),))
    assert not (tmp_path / "recording.safetensors").exists()


class Odd(Bigram):
    """Its steps return what the test says."""

    def __init__(self, returned: Callable[[int, dict[str, Tensor]], Any]) -> None:
        super().__init__()
        self.returned = returned

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.returned(batch_idx, super().training_step(batch, batch_idx))


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_batch_that_does_not_count_leaves_the_loss_open(tmp_path: Path) -> None:
    module = Odd(lambda batch_idx, output: None if batch_idx in (1, 2) else output)
    fit(StepRecorder(tmp_path, "table.weight"), steps=5, module=module)
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        assert np.isnan(run.losses_f32[:]).tolist() == [True, False, True, True, False, False]
        assert np.isnan(run.logits[:]).all(axis=1).tolist() == [False, False, True, True, False, False]
        assert not run.grads[2].any()
        assert run.embeddings[2].tobytes() == run.embeddings[1].tobytes()


@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize("own_step", [False, True])
def test_a_step_without_a_batch_that_counts_is_no_rest(tmp_path: Path, own_step: bool) -> None:
    class OwnStep(Odd):
        @override
        def optimizer_step(self, *args: Any, **options: Any) -> None:
            super().optimizer_step(*args, **options)

    module = (OwnStep if own_step else Odd)(lambda batch_idx, output: None if batch_idx == 2 else output)
    fit(StepRecorder(tmp_path, "table.weight"), steps=5, module=module)
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        assert skipped_rows(run).tolist() == [False, False, False, True, False, False]
        assert ("skipped" in run.names) == own_step
        if own_step:
            assert run.tensor("skipped")[:].tolist() == skipped_rows(run).tolist()
        frozen_R = measure_run(recording, 0).series["all"]["token_speed"]
    assert np.isnan(frozen_R).tolist() == [True, False, False, True, False, False]
    entry = Journal(tmp_path / "journal").read()
    assert entry is not None
    assert entry.first_bad_step is None
    words = flannel_pl.report(tmp_path, out=tmp_path / "page").page.read_text()
    assert "the optimizer skipped 1 step, the first one 3, as it does" in words


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_weights_that_move_without_a_batch_are_not_called_at_rest(tmp_path: Path) -> None:
    class Shrinks(torch.optim.SGD):
        @override
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(0.5)
            return loss

    module = Odd(lambda batch_idx, output: None if batch_idx == 1 else output)
    module.configure_optimizers = lambda: Shrinks(module.parameters())  # type: ignore[method-assign]
    fit(StepRecorder(tmp_path, "table.weight"), steps=3, module=module)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert not skipped_rows(recording.run(0)).any()


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_loss_that_is_nan_is_no_step_left_out(tmp_path: Path) -> None:
    module = Odd(lambda batch_idx, output: {**output, "loss": output["loss"] * float("nan")})
    fit(StepRecorder(tmp_path, "table.weight"), steps=2, module=module)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert not skipped_rows(recording.run(0)).any()
    entry = Journal(tmp_path / "journal").read()
    assert entry is not None
    assert entry.first_bad_step == 1


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_the_loss_of_a_step_is_the_mean_of_the_batches_that_count(tmp_path: Path) -> None:
    losses: list[float] = []

    def returned(batch_idx: int, output: dict[str, Tensor]) -> Any:
        if batch_idx == 1:
            return None
        losses.append(output["loss"].item())
        return output

    fit(StepRecorder(tmp_path, "table.weight"), steps=1, module=Odd(returned), accumulate_grad_batches=3)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).losses_f32[1] == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_a_batch_whose_gradient_is_thrown_away_does_not_count(tmp_path: Path) -> None:
    class BreaksOff(Bigram):
        @override
        def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None  # with the gradient of batch 2 accumulated

        @override
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.1)

    recorder = StepRecorder(tmp_path, "table.weight")
    settings: dict[str, Any] = {"limit_train_batches": 5, "accumulate_grad_batches": 2}
    fit(recorder, steps=3, module=BreaksOff(), gradient_clip_val=None, **settings)
    module, first_two = BreaksOff(), batches(2)
    optimizer = module.configure_optimizers()
    with flannel_pl.open_recording(tmp_path, framework="pt") as recording:
        run = recording.run(0)
        for t in (1, 2, 3):
            optimizer.zero_grad()
            outputs = [module.training_step(batch, 0) for batch in first_two]
            losses = [output["loss"] / 2 for output in outputs]
            for loss in losses:
                loss.backward()  # type: ignore[no-untyped-call]
            assert torch.equal(run.losses_f32[t], losses[0].detach() + losses[1].detach())
            assert torch.equal(run.logits[t], outputs[0]["logits"])
            optimizer.step()
            assert torch.equal(run.embeddings[t], module.table.weight.detach())


def test_a_loss_of_one_element_is_a_loss(tmp_path: Path) -> None:
    module = Odd(lambda batch_idx, output: {**output, "loss": output["loss"].reshape(1)})
    fit(StepRecorder(tmp_path / "a", "table.weight"), steps=3, module=module)
    fit(StepRecorder(tmp_path / "b", "table.weight"), steps=3)
    with flannel_pl.open_recording(tmp_path / "a") as a, flannel_pl.open_recording(tmp_path / "b") as b:
        assert a.run(0).losses_f32[1:].tolist() == b.run(0).losses_f32[1:].tolist()


@pytest.mark.parametrize("optimizer", [SAM, torch.optim.LBFGS])
def test_an_optimizer_that_takes_the_gradient_more_than_once_is_refused(
    tmp_path: Path, optimizer: Any
) -> None:
    module = Module(Case(optimizer=optimizer, options={}))
    with pytest.raises(
        UserError, match=f"{optimizer.__name__} evaluates the gradient several times per step"
    ):
        fit(StepRecorder(tmp_path, "net.table.weight"), steps=3, module=module)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [(torch.complex64, "table.weight is of type complex64"), (torch.int8, "table.weight is of type int8")],
)
def test_what_no_recording_holds_is_refused(tmp_path: Path, dtype: torch.dtype, words: str) -> None:
    module = Bigram()
    module.table.weight = nn.Parameter(torch.zeros(12, 3, dtype=dtype), requires_grad=False)
    with pytest.raises(UserError, match=f"{words}, expected a real floating point type"):
        fit(StepRecorder(tmp_path, "table.weight"), steps=3, module=module)


def test_logits_of_another_type_are_rounded_only_if_that_is_asked_for(tmp_path: Path) -> None:
    module = Odd(lambda batch_idx, output: {**output, "logits": output["logits"].double()})
    with pytest.raises(
        UserError,
        match=r"logits is of type float64, and the recording has float32 for it; say in dtypes in which "
        r"type to record it, e\.g\. \{'logits': 'float64'\}",
    ):
        fit(StepRecorder(tmp_path / "a", "table.weight", tensors=["logits"]), steps=3, module=module)
    fit(StepRecorder(tmp_path / "own", "table.weight"), steps=3, module=module)
    with flannel_pl.open_recording(tmp_path / "own") as recording:
        assert recording.run(0).logits.dtype == "float64"
    for dtype in ("float64", "bfloat16"):
        fit(StepRecorder(tmp_path / dtype, "table.weight", dtypes={"logits": dtype}), steps=3, module=module)
        with flannel_pl.open_recording(tmp_path / dtype) as recording:
            assert recording.run(0).logits.dtype == dtype
            assert recording.run(0).metadata["own_dtypes"]["logits"] == "float64"


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda logits_V: logits_V.to(torch.complex64), "complex64"),
        (lambda logits_V: logits_V.long(), "int64"),
        (lambda logits_V: logits_V.tolist(), "list"),
        (lambda logits_V: logits_V.numpy(), "ndarray"),
    ],
)
def test_logits_that_are_no_real_numbers_are_refused_though_a_type_is_given(
    tmp_path: Path, change: Callable[[Tensor], Any], got: str
) -> None:
    module = Odd(lambda batch_idx, output: {**output, "logits": change(output["logits"])})
    recorder = StepRecorder(tmp_path, "table.weight", dtypes={"logits": "float32"})
    with pytest.raises(UserError, match=f"training_step returned logits of type {got}, expected a tensor of"):
        fit(recorder, steps=2, module=module)


def test_nothing_unfinished_is_replaced(tmp_path: Path) -> None:
    class Trips(Callback):
        @override
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                raise ArithmeticError("trip")

    recorder = StepRecorder(tmp_path, "table.weight", checkpoint_every=2)
    with pytest.raises(ArithmeticError):
        fit(recorder, steps=6, callbacks=(Trips(),))
    before = (tmp_path / "recording.partial").read_bytes()
    with pytest.raises(
        UserError, match=r"recording\.partial is there, unfinished, and training begins with step 0"
    ):
        fit(StepRecorder(tmp_path, "table.weight", checkpoint_every=2), steps=6)
    assert (tmp_path / "recording.partial").read_bytes() == before
    (checkpoint,) = tmp_path.glob("checkpoint-2-*.ckpt")
    fit(StepRecorder(tmp_path, "table.weight", checkpoint_every=2), steps=6, ckpt_path=checkpoint)
    fit(StepRecorder(tmp_path / "calm", "table.weight"), steps=6)
    with flannel_pl.open_recording(tmp_path) as a, flannel_pl.open_recording(tmp_path / "calm") as b:
        assert a.run(0).steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert a.run(0).embeddings[:3].tobytes() == b.run(0).embeddings[:3].tobytes()


def test_rows_that_a_checkpoint_goes_on_from_are_missed_by_name(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path / "a", "table.weight", checkpoint_every=2), steps=2)
    (checkpoint,) = (tmp_path / "a").glob("checkpoint-2-*.ckpt")
    with pytest.raises(
        UserError, match=r"goes on after step 2, but there is no \S*recording\.partial with the"
    ):
        fit(StepRecorder(tmp_path / "b", "table.weight"), steps=4, ckpt_path=checkpoint)


def test_two_recorders_of_one_folder_are_refused_at_the_start(tmp_path: Path) -> None:
    inside, over = threading.Event(), threading.Event()

    class Waits(Callback):
        @override
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            inside.set()
            assert over.wait(60)

    first = threading.Thread(
        target=fit,
        args=(StepRecorder(tmp_path, "table.weight"),),
        kwargs={"steps": 2, "callbacks": (Waits(),)},
    )
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(UserError, match=r"the recording in \S+ is"):
            fit(StepRecorder(tmp_path, "table.weight"), steps=2)
    finally:
        over.set()
        first.join()
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"tensors": ["embedings"]},
            r"^tensors has 'embedings', expected some of .* did you mean embeddings\?",
        ),
        ({"dtypes": {"grads": "int8"}}, r"^dtypes has 'int8' for grads"),
        ({"every_n_steps": 0}, r"^every_n_steps is 0, expected at least 1"),
        ({"checkpoint_every": 0}, r"^checkpoint_every is 0, expected at least 1"),
    ],
)
def test_messages_name_what_a_script_gives(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StepRecorder(tmp_path, "table.weight", **wrong)


def test_a_recording_without_moments_goes_on_without_them(tmp_path: Path) -> None:
    def trip(module: Any) -> None:
        if module.trainer.global_step == 3:
            raise ArithmeticError("trip")

    trips = (in_hook("on_train_batch_start", trip),)
    recorder = StepRecorder(tmp_path, "table.weight", checkpoint_every=2)
    with pytest.raises(ArithmeticError):
        fit(recorder, steps=4, module=Bigram(optimizer="SGD"), callbacks=trips)
    (checkpoint,) = tmp_path.glob("checkpoint-2-*.ckpt")
    recorder = StepRecorder(tmp_path, "table.weight", checkpoint_every=2)
    fit(recorder, steps=4, module=Bigram(optimizer="SGD"), ckpt_path=checkpoint)
    with flannel_pl.open_recording(tmp_path) as recording:
        assert recording.run(0).steps.tolist() == [0, 1, 2, 3, 4]
        assert "momentum" not in recording.run(0).names


def test_a_parameter_that_lies_in_memory_by_columns(tmp_path: Path) -> None:
    module = Bigram()
    module.table.weight = nn.Parameter(module.table.weight.detach().T.contiguous().T)
    assert not module.table.weight.is_contiguous()
    fit(StepRecorder(tmp_path / "a", "table.weight"), steps=3, module=module)
    fit(StepRecorder(tmp_path / "b", "table.weight"), steps=3)
    with flannel_pl.open_recording(tmp_path / "a") as a, flannel_pl.open_recording(tmp_path / "b") as b:
        assert a.run(0).embeddings[:].tobytes() == b.run(0).embeddings[:].tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_report_of_weights_whose_lattice_is_not_known(tmp_path: Path, dtype: torch.dtype) -> None:
    module = Module(Case(dtype=dtype, options={"lr": 1e-3, "eps": 1e-3}))
    fit(StepRecorder(tmp_path, "net.table.weight"), steps=3, module=module)
    metrics = flannel_pl.report(tmp_path, out=tmp_path / "report").page.parent / "metrics.csv"
    header, *_ = metrics.read_text().splitlines()
    assert "token_speed" in header
    assert "lattice_l1" not in header
