"""How quantities come to see forward passes: `training_step` and some modules are listened to.

Lightning hands over what `training_step` returned only after the optimizer's step, and no module's output.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from flannel_pl.errors import UserError
from flannel_pl.quantities.core import blamed
from flannel_pl.quantities.passes import Passes
from flannel_pl.quantities.quantity import Quantity
from flannel_pl.quantities.step import Step


class Listener:
    """Shows every forward pass of training to the quantities that want to see it.

    Args:
        module: What is trained.
        quantities: Those that may want to.
        values: Where they put what they take.
        step: Returns the step under way, with what is seen of it; None if nothing is recorded now.
        every_n_steps: Only those that remember something see the passes of other steps.

    Raises:
        UserError: If a module or stream that one of them wants is not there.
    """

    def __init__(
        self,
        module: LightningModule,
        quantities: Sequence[Quantity],
        *,
        values: Passes,
        step: Callable[..., Step | None],
        every_n_steps: int,
    ) -> None:
        self._module = cast("Any", module)
        self._quantities, self._values, self._step = quantities, values, step
        self._every_n_steps = every_n_steps
        self._outputs: dict[str, list[tuple[Any, int]]] = {}
        self._before: dict[str, Any] = {}
        self._is_step = False
        self._handles: list[Any] = []
        self._streams = {name for quantity in quantities for name in _names(quantity.pieces_of)}
        self._is_listening = bool(self._streams) or any(map(sees_passes, quantities))
        if not self._is_listening:
            return
        offered = set(getattr(module, "streams", ()))
        if missing := sorted(self._streams - offered):
            raise UserError(
                f"{type(module).__name__} has no stream {', '.join(missing)}; it has "
                f"{', '.join(sorted(offered)) or 'none'}. A module that has one names it in `streams` and "
                "hands its pieces to `self.publish(name, value)` if that is there"
            )
        named = dict(module.named_modules())
        wanted = dict.fromkeys(name for quantity in quantities for name in _names(quantity.outputs_of))
        if missing := [name for name in wanted if name not in named]:
            raise UserError(
                f"{type(module).__name__} has no module {', '.join(missing)} whose output a quantity wants; "
                f"it has {', '.join(list(named)[1:6])}, ..."
            )
        self._before = {name: vars(module)[name] for name in _REPLACED if name in vars(module)}
        for name in wanted:
            self._handles.append(named[name].register_forward_hook(self._hook(name)))
        if self._streams:
            self._module.publish = self._piece
        self._module.training_step = self._wrapped(module.training_step)

    def close(self) -> None:
        """Lets go of the module."""
        for handle in self._handles:
            handle.remove()
        if self._is_listening:
            for name in _REPLACED:
                self._module.__dict__.pop(name, None)
            self._module.__dict__.update(self._before)
        self._handles, self._is_listening = [], False

    def _piece(self, name: str, value: Tensor) -> None:
        step = self._step() if self._is_step else None
        if step is not None:
            with torch.no_grad():
                for quantity in due(self._quantities, step.number, self._every_n_steps):
                    if name in _names(quantity.pieces_of):
                        with blamed(quantity):
                            quantity.piece(self._values, step, name, value)

    def _passed(self, batch: Any, returned: Any) -> None:
        seen = {name: tuple(output for output, _ in calls) for name, calls in self._outputs.items()}
        step = self._step(batch=batch, returned=returned, outputs=seen)
        if step is not None:
            for name, calls in self._outputs.items():
                if any(_version(output) != version for output, version in calls):
                    raise UserError(
                        f"what {name} gave was changed in place before a quantity could look at it; change a "
                        "copy of it (x = x + ..., not x += ...) to record it"
                    )
            with torch.no_grad():
                for quantity in due(self._quantities, step.number, self._every_n_steps):
                    with blamed(quantity):
                        quantity.forward(self._values, step)

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            if self._is_step:
                self._outputs.setdefault(name, []).append((output, _version(output)))

        return keep

    def _wrapped(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            self._is_step = True
            try:
                returned = training_step(*arguments, **options)
                batch = arguments[0] if arguments else next(iter(options.values()), None)
                self._passed(batch, returned)
                return returned
            finally:
                self._is_step, self._outputs = False, {}

        return step


_REPLACED = ("training_step", "publish")


def _names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _version(output: Any) -> int:
    """Returns how often a tensor was changed in place; 0 of anything else."""
    return output._version if isinstance(output, Tensor) else 0


def due(quantities: Iterable[Quantity], number: int, every_n_steps: int) -> list[Quantity]:
    """Returns the quantities that are called in a step.

    Args:
        quantities: All.
        number: Of the step.
        every_n_steps: Steps from one row to the next.
    """
    return [one for one in quantities if one.every_step or number % every_n_steps == 0]


def sees_passes(quantity: Quantity) -> bool:
    """Tells whether a quantity wants to see forward passes."""
    kind = type(quantity)
    return bool(quantity.outputs_of) or kind.forward is not Quantity.forward
