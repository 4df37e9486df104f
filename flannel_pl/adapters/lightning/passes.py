"""How a recorder comes to see forward passes: Lightning hands over what they returned only after the step."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule

from flannel_pl.adapters.wrapping import Wrapped
from flannel_pl.quantities.core.recorder import RunRecorder


def wrap_training_step(module: LightningModule, recorder: RunRecorder) -> Callable[[], None]:
    """Puts a `training_step` in the place of a module's own that shows each pass to a recorder.

    Args:
        module: What is trained.
        recorder: It listens already.

    Returns:
        A function that takes that back.
    """

    def step(training_step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with recorder.hearing():
            returned = training_step(*arguments, **options)
        recorder.heard(arguments[0] if arguments else next(iter(options.values()), None), returned)
        return returned

    return Wrapped(module, "training_step", step).take_off
