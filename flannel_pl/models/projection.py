"""The output projection and its loss, a few rows of logits at a time where that changes no bit.

B sequences, T positions, V tokens, D dimensions, N = B x T.

At a small model's sizes most of a step on the CPU is not arithmetic but memory: the (N, V) logits as float32
exist three times (as such, as log-softmax, as gradient), and every step has their pages made anew. Here they
exist for some rows only. The three matrix products stay whole, as autograd would compute them; only what
works row by row is done in pieces, with the framework's own kernels, and each piece's gradient in the same
pass. So the bits are those of
`GPT2LMHeadModel`'s own loss, whatever the sizes and the hardware (`tests/training/test_projection.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from typing_extensions import override

IGNORED = -100
"""Label of a position that has no part in the loss."""

Publish = Callable[[str, Tensor], object]
"""Called with the name of a stream and a piece of it, which is overwritten afterwards."""

PROBABILITY_SUMS = "probability_sums"

PIECE_ELEMENTS = 640_000
"""Logits of a piece: its few float32 copies stay in the processor's cache."""


def can_stand_in(W_VD: Tensor) -> bool:
    """Tells whether `projected_loss` may take the place of the model's own loss.

    Args:
        W_VD: The output projection's weight.

    Returns:
        True under bfloat16 autocast on the CPU.
    """
    return (
        W_VD.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
    )


def projected_loss(
    hidden_BTD: Tensor, W_VD: Tensor, labels_BT: Tensor, publish: Publish | None = None
) -> tuple[Tensor, Tensor]:
    """Computes what `GPT2LMHeadModel` does with its last hidden state under bfloat16 autocast.

    Args:
        hidden_BTD: The last hidden state.
        W_VD: The output projection's weight.
        labels_BT: int64. Like the model's own loss this one trains position t on label t + 1.
        publish: Is given the log-probabilities of each piece of positions, (n, V) float32, as `log_probs`,
            once all logits, (B, T, V) bfloat16, as `logits`, and once the sums over all positions of each
            token's probability, (V,) float32, as `probability_sums`.

    Returns:
        The loss, a float32 scalar, and the logits of the first sequence's last position, (V) bfloat16, which
        take no part in the backward pass.
    """
    num_positions = hidden_BTD.shape[1]
    targets_N = F.pad(labels_BT, (0, 1), value=IGNORED)[:, 1:].reshape(-1)
    hidden_ND = hidden_BTD.to(torch.bfloat16).flatten(0, 1)
    apply: Any = _ProjectedLoss.apply
    loss, last_V = apply(hidden_ND, W_VD.to(torch.bfloat16), targets_N, num_positions - 1, publish)
    return loss, last_V


class _ProjectedLoss(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, hidden_ND: Tensor, W_VD: Tensor, targets_N: Tensor, row: int, publish: Publish | None
    ) -> tuple[Tensor, Tensor]:
        logits_NV = F.linear(hidden_ND, W_VD)
        if publish is not None:
            publish("logits", logits_NV.view(-1, row + 1, len(W_VD)))
        last_V = logits_NV[row].clone()
        picked_N1 = _log_probs_of_targets(logits_NV, targets_N, into_gradient=torch.ones(()), publish=publish)
        # The mean over the picked column alone, each as its row's class 0, adds up in the same order.
        loss = F.nll_loss(picked_N1, targets_N.clamp_max(0), ignore_index=IGNORED)
        ctx.save_for_backward(hidden_ND, W_VD, targets_N, logits_NV)
        ctx.mark_non_differentiable(last_V)
        return loss, last_V

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_ND, W_VD, targets_N, grad_logits_NV = ctx.saved_tensors
        if grad != 1:  # a part of a step: a gradient cannot be multiplied afterwards without other rounding
            grad_logits_NV = F.linear(hidden_ND, W_VD)
            _log_probs_of_targets(grad_logits_NV, targets_N, into_gradient=grad)
        return grad_logits_NV @ W_VD, grad_logits_NV.t() @ hidden_ND, None, None, None


def publish_streams(logits_BTV: Tensor, publish: Publish) -> None:
    """Publishes what `projected_loss` does, of logits that are there as a whole.

    Args:
        logits_BTV: Of any floating point type.
        publish: As of `projected_loss`.
    """
    logits_NV = logits_BTV.detach().flatten(0, -2)
    publish("logits", logits_BTV.detach())
    sums_V = torch.zeros(logits_NV.shape[1], device=logits_NV.device)
    for piece in _pieces(logits_NV) if _is_wanted(publish, "log_probs", PROBABILITY_SUMS) else ():
        log_probs = torch.log_softmax(logits_NV[piece].float(), dim=1)
        publish("log_probs", log_probs)
        if _is_wanted(publish, PROBABILITY_SUMS):
            sums_V += log_probs.exp().sum(dim=0)
    publish(PROBABILITY_SUMS, sums_V)


def _is_wanted(publish: Publish | None, *names: str) -> bool:
    """Tells whether somebody wants to see one of some streams, as far as `publish` says it."""
    return publish is not None and not set(names).isdisjoint(getattr(publish, "names", names))


def _log_probs_of_targets(
    logits_NV: Tensor, targets_N: Tensor, *, into_gradient: Tensor, publish: Publish | None = None
) -> Tensor:
    """Computes the log-probability of each target, and overwrites the logits with their gradient on the way.

    Args:
        logits_NV: bfloat16; holds the loss's gradient afterwards.
        targets_N: int64.
        into_gradient: The gradient of the loss, float32 scalar.
        publish: As of `projected_loss`.

    Returns:
        The log-probabilities, (N, 1) float32.
    """
    counted_N = targets_N != IGNORED
    # What the loss passes on to the log-probability of each target; to all others, nothing.
    share = -(into_gradient / counted_N.sum())
    shares_N1 = torch.where(counted_N, share, torch.zeros_like(share))[:, None]
    columns_N1 = targets_N.clamp_min(0)[:, None]
    picked_N1 = torch.empty(len(targets_N), 1)
    sums_V = torch.zeros(logits_NV.shape[1]) if _is_wanted(publish, PROBABILITY_SUMS) else None
    pieces = _pieces(logits_NV)
    shape = logits_NV[pieces[0]].shape
    # The same memory for every piece stays in the processor's cache.
    buffers = torch.empty(shape), torch.empty(shape), torch.zeros(shape)
    for piece in pieces:
        columns = columns_N1[piece]
        logits, log_probs, grad_log_probs = (buffer[: len(columns)] for buffer in buffers)
        logits.copy_(logits_NV[piece])
        torch.log_softmax(logits, dim=1, out=log_probs)
        if publish is not None:
            publish("log_probs", log_probs)
        torch.gather(log_probs, 1, columns, out=picked_N1[piece])
        grad_log_probs.scatter_(1, columns, shares_N1[piece])
        grad_logits = torch._log_softmax_backward_data(
            grad_log_probs, log_probs, 1, torch.float32, out=logits
        )
        logits_NV[piece] = grad_logits
        if sums_V is not None:
            # The gradient is the probability, times what each position shares, but for the targets' own; it
            # is not needed any more.
            grad_logits.scatter_(1, columns, -picked_N1[piece].exp() * shares_N1[piece])
            sums_V -= grad_logits.sum(dim=0) / share
            sums_V += log_probs[~counted_N[piece]].exp().sum(dim=0)
        grad_log_probs.scatter_(1, columns, 0.0)  # all zeros again
    if publish is not None and sums_V is not None:
        publish(PROBABILITY_SUMS, sums_V)
    return picked_N1


def _pieces(logits_NV: Tensor) -> list[slice]:
    num_rows, num_tokens = logits_NV.shape
    step = max(1, PIECE_ELEMENTS // num_tokens)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
