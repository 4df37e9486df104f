"""How a recorder comes to see forward passes: Lightning hands over what they returned only after the step."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule

from flannel_pl.quantities.core.recorder import RunRecorder


def wrap_training_step(module: LightningModule, recorder: RunRecorder) -> Callable[[], None]:
    """Puts a `training_step` in the place of a module's own that shows each pass to a recorder.

    Args:
        module: What is trained.
        recorder: It listens already.

    Returns:
        A function that takes that back.
    """
    listener = recorder.listener
    assert listener is not None
    attributes: dict[str, Any] = module.__dict__
    before = {name: attributes[name] for name in ("training_step",) if name in attributes}
    training_step: Callable[..., Any] = module.training_step

    def step(*arguments: Any, **options: Any) -> Any:
        listener.forget()
        with listener.hearing():
            returned = training_step(*arguments, **options)
        recorder.heard(arguments[0] if arguments else next(iter(options.values()), None), returned)
        return returned

    def undo() -> None:
        attributes.pop("training_step", None)
        attributes.update(before)

    attributes["training_step"] = step
    return undo
