"""What only a model that is made can tell: tried where a config names classes, before there is any file.

They are made as for a run, on the CPU, and training starts, up to its first batch.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.core.optimizer import _MockOptimizer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from typing_extensions import override

from flannel_pl.adapters.lightning.recorder import StepRecorder
from flannel_pl.adapters.lightning.stepping import refuse_unrecordable
from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.experiment import Slot
from flannel_pl.quantities.core.tokens import TokenIds
from flannel_pl.recording.arithmetic import AUTOCAST, Arithmetic, unified
from flannel_pl.recording.formats.schema import RecordingSchema
from flannel_pl.training.positions import why_anew
from flannel_pl.training.rehearsal import Enough, settings_kept, silence, start_with
from flannel_pl.training.trainer import build, name_mistake


@dataclass(frozen=True)
class Tried:
    """What is known of a run once its model and data were made."""

    schema: RecordingSchema
    token_ids: TokenIds | None
    """The recorded tokens; None = all."""

    arithmetic: Arithmetic
    parameter_bytes: int
    """Size of all parameters."""

    data: Any
    """The data module."""

    why_anew: str
    """Why a run that is interrupted begins anew; empty if it goes on."""


def try_out(config: Config, recorder: StepRecorder, *, seed: int) -> Tried:
    """Makes everything of a run and lets its training begin; leaves no file.

    Args:
        config: The run's complete config.
        recorder: That of the run; it writes nothing.
        seed: The run's.

    Raises:
        UserError: If the run cannot be trained or recorded.
    """
    look = _Look(recorder, unified(config.trainer.precision))
    try_start(config, look, seed=seed)
    assert look.found is not None
    return look.found


def try_start(config: Config, look: Callback, *, seed: int) -> None:
    """Makes everything of a run and lets its training begin; leaves no file.

    Args:
        config: The run's complete config.
        look: A callback that raises `Enough` once training starts.
        seed: The run's.

    Raises:
        UserError: If the run cannot be trained.
    """
    with silence(), settings_kept(), tempfile.TemporaryDirectory(prefix="flannel-") as folder:
        seed_everything(seed, verbose=False)
        name_mistake(config, partial(_start, look=look, folder=Path(folder)))


def _start(config: Config, *, look: Callback, folder: Path) -> None:
    cli = build(config, folder, Slot("cpu", None, torch.get_num_threads()), progress_bar=False)
    trainer: Any = cli.trainer
    trainer.loggers = [DummyLogger()] * bool(trainer.loggers)
    trainer.profiler = PassThroughProfiler()
    try:
        start_with(cli, look)
    except Enough:
        return
    except RuntimeError as error:
        if "multiple optimizers" not in str(error):
            raise
        raise UserError(
            f"{type(cli.model).__name__} has several optimizers, but one step needs exactly one; give all "
            "parameters to one, in groups"
        ) from error
    raise ValueError("there is nothing to train")


class _Look(Callback):
    """Looks at a training where it starts, and ends it there."""

    def __init__(self, recorder: StepRecorder, precision: str) -> None:
        self._recorder, self._precision = recorder, precision
        self.found: Tried | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_unrecordable(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _refuse_optimizers(trainer, pl_module)
        schema, token_ids = self._recorder.layout(trainer, pl_module)
        parameters = list(pl_module.parameters())
        types = dict.fromkeys(str(one.dtype).removeprefix("torch.") for one in parameters)
        self.found = Tried(
            schema,
            token_ids,
            Arithmetic(", ".join(types), AUTOCAST.get(self._precision), _state_types(schema)),
            sum(one.numel() * one.element_size() for one in parameters),
            trainer.datamodule,  # type: ignore[attr-defined]
            why_anew(trainer),
        )
        raise Enough


def _state_types(schema: RecordingSchema) -> str | None:
    """Returns the types of what an optimizer keeps of the first parameter, as far as it is recorded."""
    others = ("embeddings", "grads", "logits")
    kept = {name: own for name, own in schema.own_dtypes.items() if name not in others and "/" not in name}
    return ", ".join(dict.fromkeys(kept.values())) or None


def _refuse_optimizers(trainer: Trainer, module: LightningModule) -> None:
    """Refuses optimizers of which the first step would tell that it cannot be recorded."""
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, _MockOptimizer):
            raise UserError(
                f"{type(module).__name__} has no optimizer, so nothing would be trained; return one from "
                "configure_optimizers"
            )
