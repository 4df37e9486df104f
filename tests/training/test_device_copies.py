"""Copies from a GPU, without one: they are done when an event says so, and only the writer waits for it.

In place of the device stands a queue. A copy that does not block is put into it and reaches the row only
when an event is waited for that was recorded after it, as on a CUDA stream.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from flannel_pl import FlannelData, StepRecorder, TiedGPT2
from flannel_pl.errors import UserError
from flannel_pl.quantities import Column, Quantity
from flannel_pl.quantities.core.watched import RecordedParameter
from flannel_pl.recording.writing import ring as ring_module
from tests.conftest import SMALL_VOCAB_SIZE, SmallData
from tests.training.test_recorder import Bigram, bits_of, fit

aten = torch.ops.aten
HOST_WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
"""What asks the device for a value; .item(), float(x), if x and x[mask] come to these."""

HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")


class Device(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stands in for a stream while a hook of the recorder runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ring: set[int] = set()
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.num_done = 0
        self.num_copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in HOST_WAITS, f"{func} makes the host wait for the device"
        if func is aten.copy_.default and args[0].untyped_storage().data_ptr() in self.ring:
            target, source, *non_blocking = args
            assert non_blocking == [True] or (kwargs or {}).get("non_blocking"), "the host waits for a copy"
            assert target.dtype == source.dtype, "a copy that changes the type makes the host wait"
            self.queue.append((target, source.clone()))
            self.num_copies += 1
            return target
        return func(*args, **(kwargs or {}))

    def run_up_to(self, position: int) -> None:
        for target, source in self.queue[self.num_done : position]:
            target.copy_(source)
        self.num_done = max(self.num_done, position)


def make_event(device: Device) -> type:
    class Event:
        def __init__(self, *, blocking: bool = False) -> None:
            assert blocking, "whoever waits for this event spins"
            self.position = 0

        def record(self) -> None:
            self.position = len(device.queue)

        def synchronize(self) -> None:
            assert threading.current_thread().name == "flannel-writer", "training waits for the device"
            device.run_up_to(self.position)

    return Event


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device()
    make_buffers = ring_module._make_buffers

    def buffers(*arguments: Any, pin_memory: bool, **settings: Any) -> Any:
        assert pin_memory, "a copy into memory that is not pinned makes the host wait"
        made = make_buffers(*arguments, pin_memory=False, **settings)
        device.ring = {tensor.untyped_storage().data_ptr() for row in made for tensor in row.tensors.values()}
        return made

    def on_device(hook: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any, **settings: Any) -> None:
            with device:
                hook(*arguments, **settings)

        return wrapped

    monkeypatch.setattr(ring_module, "_make_buffers", buffers)
    monkeypatch.setattr(RecordedParameter, "is_on_cuda", True)
    monkeypatch.setattr(torch.cuda, "Event", make_event(device))
    for name in HOOKS:
        monkeypatch.setattr(StepRecorder, name, on_device(getattr(StepRecorder, name)))
    yield device
    monkeypatch.undo()


class TensorRate(Bigram):
    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=torch.tensor(0.1))


@pytest.mark.parametrize("kind", [Bigram, TensorRate])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every_n_steps": 2},
        {"tensors": ["losses", "logits"]},
        {"dtypes": {"embeddings": "float32", "losses": "float16"}},
    ],
)
def test_rows_are_whole_and_nobody_else_waits(
    tmp_path: Path,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Bigram],
    options: dict[str, Any],
) -> None:
    fit(StepRecorder(tmp_path / "device", "table.weight", **options), steps=6, module=kind())
    assert device.num_copies > 6
    monkeypatch.undo()
    fit(StepRecorder(tmp_path / "cpu", "table.weight", **options), steps=6, module=kind())
    assert bits_of(tmp_path / "device") == bits_of(tmp_path / "cpu")


class Numbers(Quantity):
    """Thirty numbers, and a vector."""

    @override
    def columns(self, subject: Any) -> Any:
        numbers = [Column(f"number{index}", dtype=torch.float32) for index in range(30)]
        like = torch.empty(subject.parameter.shape[1], device="meta")
        return [*numbers, Column("sums", ("D",), like=like)]

    @override
    def after_step(self, row: Any, step: Any) -> None:
        sums_D = step.subject.parameter.detach().sum(dim=0)
        row["sums"] = sums_D
        for index in range(30):
            row[f"number{index}"] = sums_D[index % 3] + index


def test_many_numbers_come_in_one_copy(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"tensors": ["embeddings"], "quantities": [Numbers()]}
    fit(StepRecorder(tmp_path / "device", "table.weight", **options), steps=6)
    # A row has the weights, the sums, all float32 numbers; the last copy of a test of ours is row 0's.
    assert device.num_copies == 6 * 3
    monkeypatch.undo()
    fit(StepRecorder(tmp_path / "cpu", "table.weight", **options), steps=6)
    assert bits_of(tmp_path / "device") == bits_of(tmp_path / "cpu")


class Changes(Quantity):
    """Changes a number after the row has it."""

    @override
    def columns(self, subject: Any) -> Any:
        return [Column("norm", dtype=torch.float32)]

    @override
    def after_step(self, row: Any, step: Any) -> None:
        norm = step.subject.parameter.detach().norm()
        row["norm"] = norm
        norm += 1


def test_a_number_that_is_changed_before_it_is_copied_is_refused(tmp_path: Path, device: Device) -> None:
    recorder = StepRecorder(tmp_path, "table.weight", tensors=["losses"], quantities=[Changes()])
    with pytest.raises(UserError, match="norm was changed in place after it was given to the row"):
        fit(recorder, steps=2)


def watched(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def is_gone(memory: StorageWeakRef) -> bool:
    return bool(memory.expired())  # type: ignore[no-untyped-call]


class ManyPositions(Bigram):
    """Returns a view of the logits of all positions, as `logits[0, -1].detach()` is."""

    kept: StorageWeakRef | None = None
    num_looks = 0

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        if self.kept is not None:
            assert is_gone(self.kept), "the logits of the batch before are still there"
            self.num_looks += 1
        logits_BV = self.head(self.table(batch[:, 0]))
        self.kept = watched(logits_BV)
        loss = torch.nn.functional.cross_entropy(logits_BV, batch[:, 1])
        return {"loss": loss, "logits": logits_BV[0].detach()}


def test_no_batch_keeps_the_logits_of_the_one_before(tmp_path: Path) -> None:
    module = ManyPositions()
    fit(StepRecorder(tmp_path, "table.weight"), steps=3, module=module, accumulate_grad_batches=3)
    assert module.num_looks == 8


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
def test_nor_does_gpt2(small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = TiedGPT2(vocab_size=SMALL_VOCAB_SIZE, hidden_dim=16, max_seq_len=16, param_dtype="float32")
    seen: list[StorageWeakRef] = []

    def look(_: Any, inputs: Any, kept: Any = None) -> None:
        assert all(map(is_gone, seen))

    def note(_: Any, inputs: Any, output: Any) -> None:
        seen.append(watched(output.logits))

    configure = module.configure_model

    def configure_and_watch() -> None:
        configure()
        module.gpt2.register_forward_pre_hook(look)
        module.gpt2.register_forward_hook(note)

    monkeypatch.setattr(module, "configure_model", configure_and_watch)
    data = FlannelData(
        corpus_path=small_data.corpus,
        tokenizer_path=small_data.tokenizer,
        batch_size=4,
        max_seq_len=16,
        vocab_size=SMALL_VOCAB_SIZE,
    )
    trainer = Trainer(
        max_steps=2,
        accumulate_grad_batches=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepRecorder(tmp_path, TiedGPT2.EMBEDDING)],
    )
    trainer.fit(module, data)
    assert len(seen) == 6
