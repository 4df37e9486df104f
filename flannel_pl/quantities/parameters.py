"""A parameter's values, its gradient, and what the optimizer keeps of it.

The recorded parameter, `Subject.parameter`, has a row for each token; of it the recorded tokens are taken. So
they are of any other that has its shape, e.g. an untied output matrix.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from flannel_pl.errors import UserError
from flannel_pl.quantities.naming import expand, find_named, place_of, what_there_is
from flannel_pl.quantities.quantity import Column, Quantity, Row
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject


class OfParameter(Quantity):
    """Something of a parameter, of its shape.

    Args:
        column: What the column is called.
        of: Name of the parameter, or of a buffer; None = the recorded parameter.
    """

    def __init__(self, column: str, of: str | None = None) -> None:
        self.column, self.of = column, of
        self._found: tuple[Subject, str, nn.Module, str] | None = None

    def tensor(self, subject: Subject) -> Tensor:
        """Returns the parameter."""
        return self._find(subject)[1]

    def name(self, subject: Subject) -> str:
        """Returns its full name."""
        return self._find(subject)[0]

    def _find(self, subject: Subject) -> tuple[str, Tensor]:
        if self.of is None:
            return subject.parameter_name, subject.parameter
        if self._found is None or self._found[0] is not subject:  # which a plan has another of
            full = find_named(subject.module, self.of)[0]
            self._found = (subject, full, *place_of(subject.module, full))
        _, full, owner, attribute = self._found
        return full, getattr(owner, attribute)  # a module may put another buffer there at any time

    def declared(self, subject: Subject, **more: Any) -> list[Column]:
        """Returns the column, of the type in which training has it."""
        tensor = self.tensor(subject)
        dtype = subject.own_dtypes.get(self.column, tensor.dtype)
        like = torch.empty(tensor.shape, dtype=dtype, device="meta")
        return [Column(self.column, _axes(tensor, subject), like=like, parameter=self.name(subject), **more)]


def _axes(tensor: Tensor, subject: Subject) -> tuple[str, ...]:
    first = subject.parameter
    if subject.has_rows and tensor.shape == first.shape:
        num_tokens, width = first.shape
        # Where a model is as wide as its vocabulary is large, nothing tells whose rows are tokens.
        if tensor is first or num_tokens != width:
            return ("V", "D")
    return tuple(f"axis{number}" for number in range(tensor.ndim))


class ParameterValues(OfParameter):
    """The values of a parameter, or of a buffer, after each step."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        what = "token embedding" if self.of is None and subject.has_rows else "values"
        return self.declared(subject, row0="initial", meaning=f"{what} after the step")

    @override
    def first_row(self, row: Row, subject: Subject) -> None:
        row[self.column] = self.tensor(subject)

    @override
    def after_step(self, row: Row, step: Step) -> None:
        row[self.column] = self.tensor(step.subject)


class ParameterGradients(OfParameter):
    """The gradient of a parameter, at the weights of the step before, as it is before clipping."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        meaning = "gradient at the weights of the step before, not clipped"
        return self.declared(subject, row0="zero", taken="before_step", meaning=meaning)

    @override
    def before_step(self, row: Row, step: Step) -> None:
        row[self.column] = step.optimizing.gradient(self.tensor(step.subject))


class OptimizerState(OfParameter):
    """One of the tensors that the optimizer keeps of a parameter, after each step; zeros until it is there.

    Args:
        key: Its name in the optimizer's state, e.g. exp_avg.
        column: What the column is called.
        of: Name of the parameter; None = the recorded one.
        owner: Whose it is, for the column's meaning.
    """

    def __init__(self, key: str, column: str, of: str | None = None, owner: str = "the optimizer") -> None:
        super().__init__(column, of)
        self.key, self.owner = key, owner
        self.part: tuple[torch.dtype, tuple[int, ...]] | None = None
        """Type and shape where only some of the parameter's axes are kept; set once there is an optimizer."""

    @override
    def columns(self, subject: Subject) -> Sequence[Column]:
        meaning = f"{self.owner}'s {self.key} after the step"
        if self.part is None:
            return self.declared(subject, row0="zero", meaning=meaning)
        dtype, shape = self.part
        axes = tuple(f"axis{number}" for number in range(len(shape)))
        like = torch.empty(shape, dtype=dtype, device="meta")
        return [Column(self.column, axes, None, like, "zero", meaning=meaning, parameter=self.name(subject))]

    @override
    def after_step(self, row: Row, step: Step) -> None:
        tensor, name = self.tensor(step.subject), self.name(step.subject)
        row[self.column] = step.optimizing.state(self.key, tensor, of=name, wanted=self.column)


OPTIMIZER_STATE = {"momentum": "exp_avg", "variance": "exp_avg_sq"}
"""Recorded tensor -> its name in the state of torch's Adam optimizers."""


OF_PARAMETER = ("embeddings", "grads", *OPTIMIZER_STATE)
"""Which of `RECORDABLE` are of a parameter: its values, its gradient, Adam's moments."""


def kinds_of(tensors: Collection[str]) -> tuple[str, ...]:
    """Returns which of `OF_PARAMETER` are recorded of further parameters: their values at least."""
    return tuple(name for name in OF_PARAMETER if name in tensors) or OF_PARAMETER[:1]


def leading(module: nn.Module, parameter: str | None, further: Mapping[str, str]) -> str:
    """Returns the name of the parameter whose learning rate and device are those of a recording.

    Args:
        module: What is trained.
        parameter: Name of the recorded parameter, if one is to have the bare names.
        further: Alias -> name, of further ones.

    Raises:
        UserError: If nothing is to be recorded, or a name stands for nothing.
    """
    if parameter is not None:
        return parameter
    names = list(expand(module, further).values())
    if not names:
        raise UserError(
            "recorder.parameter names none, and recorder.parameters no other, so none would be recorded; the "
            f"module has {what_there_is(module)}. Name one, or record every one (recorder.parameters all)"
        )
    trained = {id(one) for one in module.parameters()}
    return next((name for name in names if id(find_named(module, name)[1]) in trained), names[0])


def of_first(kept: Mapping[str, str]) -> list[OptimizerState]:
    """Returns what is recorded of the first parameter's optimizer: column -> key in its state."""
    return [_state(key, column, None) for column, key in kept.items()]


def _state(key: str, column: str, of: str | None) -> OptimizerState:
    return OptimizerState(key, column, of, **({"owner": "Adam"} if key in OPTIMIZER_STATE.values() else {}))


def further_parameters(
    module: nn.Module,
    wanted: Mapping[str, str],
    *,
    besides: str | None,
    tensors: Collection[str],
    kept: Callable[[Tensor], Mapping[str, str]],
) -> list["OfParameter"]:
    """Returns what is recorded of parameters besides the first: `alias/values`, `alias/grads`, ...

    Args:
        module: What is trained.
        wanted: Alias -> name, pattern or `all`, see `naming.expand`.
        besides: Name of the first, which has the bare names; it is not recorded twice. None if none has.
        tensors: Which of `RECORDABLE` are wanted of the first; the same are of these, see `kinds_of`.
        kept: Returns what is recorded of a parameter's optimizer: column, without the alias -> key.

    Raises:
        UserError: If a name stands for nothing.
    """
    found: list[OfParameter] = []
    trained = {id(one) for one in module.parameters() if one.is_floating_point()}
    kinds = kinds_of(tensors)
    has_bare_names = besides is not None and not set(OF_PARAMETER).isdisjoint(tensors)
    seen = {id(find_named(module, besides)[1])} if besides is not None and has_bare_names else set()
    for alias, name in expand(module, wanted).items():
        tensor = find_named(module, name)[1]
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if "embeddings" in kinds:
            found.append(ParameterValues(f"{alias}/values", name))
        if id(tensor) not in trained:
            continue
        if "grads" in kinds:
            found.append(ParameterGradients(f"{alias}/grads", name))
        found += [_state(key, f"{alias}/{column}", name) for column, key in kept(tensor).items()]
    return found
