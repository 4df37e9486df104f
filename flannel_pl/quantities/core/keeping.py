"""What an optimizer keeps of a parameter, known before its first step: a copy of it takes some steps.

So a tensor that it will never keep is refused at the start, and one that comes later is told from that. The
copy steps on a small stand-in. The optimizer itself, its state, what its classes keep for all of them, and
the random numbers of torch, Python and numpy stay as they are. What somebody's own `step` does beyond that
(prints, files, a module's variables) cannot be taken back; so nobody asks where no moments are recorded.
"""

import contextlib
import copy
import inspect
import itertools
import random
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

NUM_STEPS = 3
"""Some optimizers begin with the second step to keep something."""

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


@dataclass(frozen=True)
class Kept:
    """What an optimizer keeps of a parameter: key in its state -> type, or shape and type."""

    whole: Mapping[str, torch.dtype]
    """What is as large as the parameter itself."""

    parts: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    """What has some of its axes, e.g. one number per row."""


def kept_state(optimizer: Optimizer, parameter: Tensor) -> Kept | None:
    """Returns what an optimizer keeps of a parameter.

    Args:
        optimizer: It need not have stepped.
        parameter: Of any shape. One that the optimizer does not hold may come to it later: it is asked
            what it would keep of it in its first group.

    Returns:
        It; None if it cannot be told.
    """
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    # Some make what they keep when they are made, and cannot step without it; some need every gradient.
    for with_state, with_all in itertools.product((False, True), repeat=2):
        # Whatever somebody's own optimizer cannot do with a copy of itself.
        with (
            contextlib.suppress(Exception),
            torch.random.fork_rng(devices),
            _others_random_numbers_kept(),
            _classes_kept(type(optimizer)),
            _no_hooks_of_all_optimizers(),
            torch.enable_grad(),
        ):
            return _steps_of_a_copy(optimizer, parameter, with_state=with_state, with_all=with_all)
    return None


@contextmanager
def _no_hooks_of_all_optimizers() -> Iterator[None]:
    """Keeps those from a copy's steps who are told of the steps of every optimizer."""
    torch_optimizer: Any = sys.modules[Optimizer.__module__]
    names = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    kept = {name: getattr(torch_optimizer, name) for name in names if hasattr(torch_optimizer, name)}
    try:
        for name in kept:
            setattr(torch_optimizer, name, OrderedDict())
        yield
    finally:
        for name, hooks in kept.items():
            setattr(torch_optimizer, name, hooks)


@contextmanager
def _others_random_numbers_kept() -> Iterator[None]:
    """Takes back what an optimizer draws from Python's and numpy's generators, e.g. for noise."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@contextmanager
def _classes_kept(kind: type) -> Iterator[None]:
    """Takes back what a step changes of its classes, e.g. a count of all steps."""
    own = [one for one in kind.__mro__[:-1] if not one.__module__.startswith("torch.")]
    before = [(one, name, value, _content(value)) for one in own for name, value in vars(one).items()]
    try:
        yield
    finally:
        for one in own:
            for name in vars(one).keys() - {name for owner, name, *_ in before if owner is one}:
                delattr(one, name)
        for one, name, value, content in before:
            if content is not None and _content(value) != content:
                _fill(value, content)
            if vars(one).get(name) is not value:
                setattr(one, name, value)


def _content(value: Any) -> Any:
    """Returns a copy of what may grow in place; None of all else."""
    return copy.copy(value) if isinstance(value, (list, dict, set)) else None


def _fill(value: Any, content: Any) -> None:
    value.clear()
    (value.extend if isinstance(value, list) else value.update)(content)


def _smaller(state: Mapping[str, Any], of: Tensor, stand_in: Tensor) -> dict[str, Any]:
    """Returns what an optimizer keeps of a parameter, for another that is smaller."""
    return {
        key: torch.zeros_like(stand_in, dtype=value.dtype)
        if isinstance(value, Tensor) and value.shape == of.shape
        else copy.deepcopy(value)
        for key, value in state.items()
    }


def _no_loss() -> Any:
    return torch.zeros(())


def _steps_of_a_copy(optimizer: Optimizer, parameter: Tensor, *, with_state: bool, with_all: bool) -> Kept:
    # Sizes that differ, so that what is kept per row or per column does not pass for the whole.
    held = [one for group in optimizer.param_groups for one in group["params"]]
    is_held = any(one is parameter for one in held)
    stand_ins = {
        id(one): torch.zeros(
            [min(size, 3 - axis % 2) for axis, size in enumerate(one.shape)],
            dtype=one.dtype,
            device=one.device,
            requires_grad=one.requires_grad,
        )
        for one in (*held, parameter)
    }
    state: defaultdict[Any, Any] = defaultdict(dict)
    for one in held if with_state else ():
        state[stand_ins[id(one)]] = _smaller(optimizer.state.get(one, {}), one, stand_ins[id(one)])
    memo: dict[int, Any] = {**stand_ins, id(optimizer.state): state}
    # A schedule replaces `step` on the object, and hooks may hold all of a training.
    attributes = {name: value for name, value in vars(optimizer).items() if not callable(value)}
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(
        copy.deepcopy({name: attributes[name] for name in attributes if name not in _HOOKS}, memo)
    )
    twin.__dict__.update({name: OrderedDict() for name in _HOOKS})
    stand_in = stand_ins[id(parameter)]
    if not is_held:
        twin.param_groups[0]["params"].append(stand_in)
    for _ in range(NUM_STEPS):
        for one in stand_ins.values() if with_all else [stand_in]:
            one.grad = torch.full_like(one, 1e-3)
        # Not every own optimizer takes what computes the loss once more.
        twin.step(*([_no_loss] if inspect.signature(twin.step).parameters else []))
    # A count of steps has the shape of a parameter that is one number.
    kept = {
        key: value
        for key, value in twin.state.get(stand_in, {}).items()
        if isinstance(value, Tensor) and key != "step"
    }
    whole = {key: value.dtype for key, value in kept.items() if value.shape == stand_in.shape}
    shapes = {key: _shape_of_part(kept[key], stand_in, parameter) for key in kept.keys() - whole.keys()}
    parts = {key: (kept[key].dtype, shape) for key, shape in shapes.items() if shape is not None}
    return Kept(whole, parts)


def _shape_of_part(part: Tensor, stand_in: Tensor, parameter: Tensor) -> tuple[int, ...] | None:
    """Returns the shape of what has some of a parameter's axes, others being 1 or gone; None if unclear."""
    found = set()
    for axes in itertools.combinations(range(stand_in.ndim), part.ndim):
        sizes = [(part.shape[place], stand_in.shape[axis], axis) for place, axis in enumerate(axes)]
        if part.ndim and all(size in (1, whole) for size, whole, _ in sizes):
            found.add(tuple(parameter.shape[axis] if size == whole else 1 for size, whole, axis in sizes))
    return found.pop() if len(found) == 1 else None
