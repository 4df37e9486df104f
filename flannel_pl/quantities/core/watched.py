"""The parameter that is recorded: found by its name, and watched, so that no row tells of another one.

Somebody may put another object in its place, or change it after its row was taken: then the next gradient
belongs to weights that no row has.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.config import RecorderConfig
from flannel_pl.quantities.core.row import dtype_name
from flannel_pl.quantities.naming import expand, find_named, path_of
from flannel_pl.quantities.parameters import OF_PARAMETER, kinds_of


class RecordedParameter:
    """One parameter of a module.

    Args:
        module: What is trained.
        name: As in `named_parameters()`; of a tied one, any of its names.
        has_tokens: Whether it must have a row for each token, for logits or because some are recorded.

    Raises:
        UserError: If there is none, or it cannot be recorded.
    """

    def __init__(self, module: nn.Module, name: str, *, has_tokens: bool = False) -> None:
        self.name, self.tensor = find_named(module, name)
        _refuse_unfit(self.name, self.tensor)
        if has_tokens and self.tensor.ndim != 2:
            shape = tuple(self.tensor.shape)
            raise UserError(
                f"{self.name} has shape {shape}, expected two dimensions (tokens, width), as logits and "
                "recorder.tokens need; leave logits out of recorder.tensors, and record all tokens"
            )
        self._module, self._path = module, path_of(module, self.name)
        self._seen: Tensor | None = None
        self._seen_at = (0, 0)

    def refuse_replaced(self) -> None:
        """Refuses to go on with an object that the module does not train any more.

        Raises:
            UserError: If the module has another parameter by that name now.
        """
        try:
            # From the root: any module on the way may be another one by now.
            is_there = self._module.get_parameter(self._path) is self.tensor
        except AttributeError:
            is_there = False
        if not is_there:
            raise UserError(
                f"{self.name} is another object than when training started: something has replaced it, or a "
                "module that it is in. To record it, change its values in place (parameter.copy_ within "
                "torch.no_grad())"
            )

    def take(self) -> None:
        """Has to be called when its values are put into a row."""
        self._seen = self.tensor.detach().clone(memory_format=torch.contiguous_format)
        self._seen_at = self._where()

    @property
    def is_on_cuda(self) -> bool:
        """Whether the host does not compute it."""
        return self.tensor.device.type == "cuda"

    def refuse_changed(self, *, step: int, who: Callable[[], str]) -> None:
        """Refuses a gradient at weights that are not those of the last row.

        On the CPU their bits are compared. Elsewhere that would make the host wait, so they are only where
        torch has counted a change.

        Args:
            step: The step that the gradient is of.
            who: Says who may have done it, and where it would be right.

        Raises:
            UserError: If something has changed them since `take`.
        """
        seen, self._seen = self._seen, None
        is_untouched = self.is_on_cuda and self._where() == self._seen_at
        if seen is None or is_untouched or _has_same_bits(seen, self.tensor):
            return
        raise UserError(
            f"{self.name} was changed after its row of step {step - 1} was taken, so the gradient of step "
            f"{step}, or the step itself, belongs to weights that no row has; {who()}"
        )

    def _where(self) -> tuple[int, int]:
        return self.tensor._version, self.tensor.data_ptr()


class WatchedParameters:
    """The parameters of a recording that are trained; buffers may change whenever they like.

    Args:
        module: What is trained.
        config: What is recorded.
        first: The first parameter.
    """

    def __init__(self, module: nn.Module, config: RecorderConfig, first: RecordedParameter) -> None:
        self.first = first
        trained = {id(parameter) for parameter in module.parameters()}
        has_bare_names = config.parameter is not None and not set(OF_PARAMETER).isdisjoint(config.wanted)
        others = {
            id(find_named(module, name)[1]): name for name in expand(module, config.parameters).values()
        }
        seen = {id(first.tensor)} if has_bare_names else set()
        self._others = [RecordedParameter(module, others[key]) for key in others.keys() & trained - seen]
        self._seen = [first] if config.parameter is not None and "embeddings" in config.wanted else []
        self._seen += self._others if "embeddings" in kinds_of(config.wanted) else []

    def take(self) -> None:
        """Takes note of the weights that a row has."""
        for parameter in self._seen:
            parameter.take()

    def refuse_replaced(self) -> None:
        """See `RecordedParameter.refuse_replaced`."""
        for parameter in (self.first, *self._others):
            parameter.refuse_replaced()

    def refuse_changed(self, *, step: int, who: Callable[[], str]) -> None:
        """See `RecordedParameter.refuse_changed`."""
        for parameter in (self.first, *self._others):
            parameter.refuse_changed(step=step, who=who)


def _refuse_unfit(name: str, parameter: Tensor) -> None:
    if is_lazy(parameter):
        raise UserError(
            f"{name} has no shape yet, because it comes with the first batch; pass one through the module "
            "before training"
        )
    if not isinstance(parameter, nn.Parameter):
        raise UserError(
            f"{name} is a buffer, which has neither gradient nor learning rate; name a parameter first, and "
            "the buffer after it"
        )
    if not parameter.is_floating_point():
        raise UserError(
            f"{name} is of type {dtype_name(parameter)}, expected a real floating "
            "point type: a recording has no other"
        )


def _has_same_bits(one: Tensor, other: Tensor) -> bool:
    # Flat, since what is one number has no axis to be seen as bytes.
    return torch.equal(*(x.detach().contiguous().view(-1).view(torch.uint8) for x in (one, other)))
