"""AdamW that says how it rounds: in which type its state is kept, when results are rounded, and how.

With weights in bfloat16 the arithmetic of the optimizer decides whether a token can move at all: an update
below half of the grid's spacing is lost when it is rounded to the nearest value, and so is a second moment's
decay. Each of these choices is an option here, one at a time.

The update is that of Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), in the order
of operations of `torch.optim.AdamW`.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from flannel_pl.errors import UserError

StateType = Literal["bfloat16", "float32"]
Rounding = Literal["nearest", "stochastic", "kahan"]
Where = Literal["operation", "step"]


class AdamW(Optimizer):
    """AdamW with a named arithmetic; as it stands, that of `torch.optim.AdamW`, to the bit.

    Args:
        params: Parameters or groups of them, in float32 or bfloat16.
        lr: Learning rate.
        betas: Decay of the first and of the second moment.
        eps: Added to the square root of the second moment.
        weight_decay: Decoupled decay of the weights, as a factor of `lr`.
        state_dtype: Type of both moments; null = as the weights.
        rounding: How weights are rounded to bfloat16: to the `nearest` value; `stochastic`, up or down with a
            chance that makes the mean right; or `kahan`, to the nearest while what was lost is kept in a
            further tensor of the weights' type and added at the next step (Kahan, 1965). Weights in float32
            know `nearest` only.
        state_rounding: How moments are rounded to bfloat16: `nearest` or `stochastic`.
        where: Round after every `operation`, as torch does where all is of one type; or compute in float32
            and round what is stored once a `step`, as torch's fused kernels do.
        bias_correction: Whether moments are divided by 1 - beta^t. False divides by 1 - beta at every step,
            so that the first step is the same; by nothing at all it would be (1 - beta1) / sqrt(1 - beta2)
            times as large, 3.2 with the defaults, which would be another experiment.
        seed: Of stochastic rounding; null = torch's current seed, in an experiment that of the run.

    Raises:
        UserError: If a value cannot be used.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        >>> optimizer = AdamW([weight], lr=1e-3, state_dtype="float32", rounding="stochastic")
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        state_dtype: StateType | None = None,
        rounding: Rounding = "nearest",
        state_rounding: Literal["nearest", "stochastic"] = "nearest",
        where: Where = "operation",
        bias_correction: bool = True,
        seed: int | None = None,
    ) -> None:
        choices = (
            ("state_dtype", state_dtype, (None, *get_args(StateType))),
            ("rounding", rounding, get_args(Rounding)),
            ("state_rounding", state_rounding, ("nearest", "stochastic")),
            ("where", where, get_args(Where)),
        )
        for name, given, known in choices:
            if given not in known:
                raise UserError(f"AdamW: {name} is {given!r}, expected one of {', '.join(map(str, known))}")
        for name, number in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not (number >= 0 and math.isfinite(number)):
                raise UserError(f"AdamW: {name} is {number}, expected 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"AdamW: betas are {tuple(betas)}, expected two numbers from 0 to below 1")
        self._state_dtype = None if state_dtype is None else getattr(torch, state_dtype)
        self._rounding, self._state_rounding, self._where = rounding, state_rounding, where
        self._corrects, self._seed = bias_correction, torch.initial_seed() if seed is None else seed
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for parameter in (one for group in self.param_groups for one in group["params"]):
            self._check(parameter)

    def _check(self, parameter: Tensor) -> None:
        if parameter.dtype not in (torch.float32, torch.bfloat16):
            raise UserError(f"AdamW: a parameter is {parameter.dtype}, expected float32 or bfloat16")
        if parameter.dtype == torch.float32 and self._rounding != "nearest":
            raise UserError(
                f"AdamW: rounding is {self._rounding}, but the weights are float32, which are not rounded to "
                "bfloat16; give rounding nearest, or weights in bfloat16 (model.param_dtype)"
            )

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: Computes the loss anew and returns it; None = the gradients are there.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self._update(parameter, group, number)
        return loss

    def _update(self, weights: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[weights]
        if not state:
            kind = self._state_dtype or weights.dtype
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(weights, dtype=kind)
            state["exp_avg_sq"] = torch.zeros_like(weights, dtype=kind)
            if self._rounding == "kahan":
                state["kahan"] = torch.zeros_like(weights)
        state["step"] += 1
        step = int(state["step"])
        draws = _Draws(self._seed, step, number, weights.device)
        (beta1, beta2), rate = group["betas"], group["lr"]
        working = torch.float32 if self._where == "step" else state["exp_avg"].dtype
        gradient = weights.grad.to(working)  # type: ignore[union-attr]  # it is there
        mean, square = (state[name].to(working) for name in ("exp_avg", "exp_avg_sq"))  # itself, if it can be
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        corrected = step if self._corrects else 1
        step_size = rate / (1 - beta1**corrected)
        root = (square.sqrt() / (1 - beta2**corrected) ** 0.5).add_(group["eps"])
        decay = rate * group["weight_decay"]
        if self._rounding == "kahan":
            self._move_with_rest(weights, state["kahan"], mean, root, step_size, decay)
        else:
            self._move(weights, mean, root, step_size, decay, draws)
        for name, moment in (("exp_avg", mean), ("exp_avg_sq", square)):
            if moment is not state[name]:
                state[name].copy_(rounded(moment, state[name].dtype, draws if self._draws_state else None))

    @property
    def _draws_state(self) -> bool:
        return self._state_rounding == "stochastic"

    def _move(
        self, weights: Tensor, mean: Tensor, root: Tensor, step_size: float, decay: float, draws: "_Draws"
    ) -> None:
        """Takes the step, rounded after the decay and after the update, or after both."""
        if self._rounding == "nearest" and self._where == "operation":
            if decay:
                weights.mul_(1 - decay)
            weights.addcdiv_(mean, root, value=-step_size)
            return
        chance = draws if self._rounding == "stochastic" else None
        moved = weights.float()
        if decay:
            moved = moved * (1 - decay)
            if self._where == "operation":
                moved = rounded(moved, weights.dtype, chance).float()
        moved = moved.addcdiv(mean.float(), root.float(), value=-step_size)
        weights.copy_(rounded(moved, weights.dtype, chance))

    def _move_with_rest(
        self, weights: Tensor, rest: Tensor, mean: Tensor, root: Tensor, step_size: float, decay: float
    ) -> None:
        """Takes the step, and keeps what the weights' type could not hold of it."""
        before = weights.clone()
        if self._where == "operation":
            if decay:
                rest.add_(weights, alpha=-decay)
            rest.addcdiv_(mean, root, value=-step_size)
            weights.add_(rest)
            rest.add_(before.sub_(weights))
            return
        wanted = rest.float().addcdiv_(mean, root, value=-step_size)
        if decay:
            wanted.add_(weights, alpha=-decay)
        weights.copy_(before.float() + wanted)
        rest.copy_(wanted + (before.float() - weights.float()))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state as it was; torch itself would round it to the weights' type."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [one for group in self.param_groups for one in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                device = value.device if name == "step" else parameter.device
                self.state[parameter][name] = value.to(device, copy=True)


class _Draws:
    """Random numbers of one tensor at one step: the same again wherever training goes on from."""

    def __init__(self, seed: int, step: int, number: int, device: torch.device) -> None:
        self._key, self._device = (seed, step, number), device
        self._generator: torch.Generator | None = None

    def sixteen_bits(self, shape: torch.Size) -> Tensor:
        """Returns whole numbers from 0 to 65535, int32."""
        if self._generator is None:
            self._generator = torch.Generator(self._device)
            digest = hashlib.blake2b(repr(self._key).encode(), digest_size=7).digest()
            self._generator.manual_seed(int.from_bytes(digest))
        return torch.randint(2**16, shape, generator=self._generator, dtype=torch.int32, device=self._device)


def rounded(values: Tensor, dtype: torch.dtype, draws: _Draws | None = None) -> Tensor:
    """Returns float32 values in another type.

    Args:
        values: float32.
        dtype: float32 or bfloat16.
        draws: Of stochastic rounding: a value between two of bfloat16 becomes the one or the other, each with
            a chance that is the nearness to it; None = the nearest.
    """
    if dtype == torch.float32 or draws is None:
        return values.to(dtype)
    # bfloat16 is the upper half of float32: a carry out of the lower half rounds up.
    bits = values.view(torch.int32) + draws.sixteen_bits(values.shape)
    return torch.where(values.isfinite(), (bits & -65536).view(torch.float32), values).to(dtype)
