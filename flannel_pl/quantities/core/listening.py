"""How quantities come to see forward passes: modules whose outputs they want, and streams, are listened to.

Whoever trains says when a pass of training begins and ends; what runs besides (validation, a backward that
computes a part again) is not heard.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.blame import blamed
from flannel_pl.quantities.core.due import due
from flannel_pl.quantities.core.passes import Passes
from flannel_pl.quantities.naming import without_wrapper
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
        in_training_mode: Whether a pass is all that runs while the module is in training mode and gradients
            are computed; else it is what runs within `hearing`.

    Attributes:
        is_wanted: Whether anybody listens.

    Raises:
        UserError: If a module or stream that one of them wants is not there.
    """

    def __init__(
        self,
        module: nn.Module,
        quantities: Sequence[Quantity],
        *,
        values: Passes,
        step: Callable[..., Step | None],
        every_n_steps: int,
        in_training_mode: bool = False,
    ) -> None:
        # What `torch.compile` returns is a wrapper, which has nothing of its own.
        self._module = cast("Any", getattr(module, "_orig_mod", module))
        self._quantities, self._values, self._step = quantities, values, step
        self._every_n_steps = every_n_steps
        self._outputs: dict[str, list[tuple[Any, int]]] = {}
        self._heard: set[str] = set()
        self._publisher: _Publisher | None = None
        self._in_training_mode, self._is_pass = in_training_mode, False
        self._handles: list[Any] = []
        streams = {name for quantity in quantities for name in _names(quantity.pieces_of)}
        self.is_wanted = bool(streams) or any(map(sees_passes, quantities))
        if not self.is_wanted:
            return
        kind, offered = type(self._module).__name__, set(getattr(self._module, "streams", ()))
        if missing := sorted(streams - offered):
            raise UserError(
                f"{kind} has no stream {', '.join(missing)}; it has "
                f"{', '.join(sorted(offered)) or 'none'}. A module that has one names it in `streams` and "
                "hands its pieces to `self.publish(name, value)` if that is there"
            )
        named = {without_wrapper(name): one for name, one in self._module.named_modules()}
        wanted = dict.fromkeys(name for quantity in quantities for name in _names(quantity.outputs_of))
        if missing := [name for name in wanted if without_wrapper(name) not in named]:
            raise UserError(
                f"{kind} has no module {', '.join(missing)} whose output a quantity wants; "
                f"it has {', '.join(list(named)[1:6])}, ..."
            )
        for name in wanted:
            ear = _Ear(self, name)
            self._handles.append(named[without_wrapper(name)].register_forward_hook(ear))
        if streams:
            self._publisher = _publisher_of(self._module)
            self._publisher.add(self, streams)

    def close(self) -> None:
        """Lets go of the module."""
        for handle in self._handles:
            handle.remove()
        if self._publisher is not None:
            self._publisher.remove(self, self._module)
        self._handles, self._publisher, self.is_wanted = [], None, False

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Hears what runs in the block: a forward pass of training."""
        self._outputs = {}
        self._is_pass = True
        try:
            yield
        finally:
            self._is_pass = False

    def _hears(self, name: str) -> bool:
        """Tells whether what gives this now is a forward pass of training."""
        in_training = self._in_training_mode and self._module.training and torch.is_grad_enabled()
        if not (self._is_pass or in_training):
            return False
        if torch.compiler.is_compiling():  # then a backward calls nothing
            return True
        # A backward computes a part again; of one whose forward runs without gradients that is all there is.
        in_backward = torch._C._current_graph_task_id() != -1
        if not in_backward:
            self._heard.add(name)
        return not in_backward or name not in self._heard

    def gave(self, name: str, output: Any) -> None:
        """Keeps what a module gave, until the pass is over."""
        if self._hears(name):
            self._outputs.setdefault(name, []).append((output, _version(output)))

    def piece(self, name: str, value: Tensor) -> None:
        """Shows a piece of a stream."""
        step = self._step() if self._hears(name) else None
        if step is not None:
            with torch.no_grad():
                for quantity in due(self._quantities, step.number, self._every_n_steps):
                    if name in _names(quantity.pieces_of):
                        with blamed(quantity):
                            quantity.piece(self._values, step, name, value)

    def passed(self, batch: Any, returned: Any) -> None:
        """Shows a forward pass that is over.

        Args:
            batch: What it was given.
            returned: What it returned.

        Raises:
            UserError: If a module's output was changed before this.
        """
        if not self.is_wanted:
            return
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
        self._outputs = {}


class _Ear:
    """The hook of a module; on a copy of the module, e.g. an average of its weights, it hears nothing."""

    def __init__(self, listener: Listener | None = None, name: str = "") -> None:
        self.listener, self.name = listener, name

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        if self.listener is not None:
            self.listener.gave(self.name, output)

    def __reduce__(self) -> Any:
        return _Ear, ()


class _Publisher:
    """What a module hands the pieces of its streams to; a copy of the module has nobody who listens.

    Attributes:
        names: The streams that somebody wants to see.
    """

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self._wanted: dict[Listener, frozenset[str]] = {}
        self._before: dict[str, Any] = {}

    def __call__(self, name: str, value: Tensor) -> None:
        for listener, names in self._wanted.items():
            if name in names:
                listener.piece(name, value)

    def add(self, listener: Listener, names: Collection[str]) -> None:
        """Lets one more listen."""
        self._wanted[listener] = frozenset(names)
        self.names = frozenset().union(*self._wanted.values())

    def take_place(self, module: Any) -> None:
        """Takes the place of what the module itself has there."""
        self._before = {name: vars(module)[name] for name in ("publish",) if name in vars(module)}
        module.publish = self

    def remove(self, listener: Listener, module: Any) -> None:
        """Lets one less listen; the last one gives the module back what it had."""
        self._wanted.pop(listener, None)
        self.names = frozenset().union(*self._wanted.values())
        if not self._wanted and vars(module).get("publish") is self:
            del module.publish
            vars(module).update(self._before)

    def __reduce__(self) -> Any:
        return _Publisher, ()


def _publisher_of(module: Any) -> _Publisher:
    there = vars(module).get("publish")
    if isinstance(there, _Publisher):
        return there
    publisher = _Publisher()
    publisher.take_place(module)
    return publisher


def _names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _version(output: Any) -> int:
    """Returns how often a tensor was changed in place; 0 of anything else."""
    return output._version if isinstance(output, Tensor) else 0


def sees_passes(quantity: Quantity) -> bool:
    """Tells whether a quantity wants to see forward passes."""
    kind = type(quantity)
    return bool(quantity.outputs_of) or kind.forward is not Quantity.forward
