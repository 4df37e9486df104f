"""The loss in pieces has the bits of the model's own, and so have its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from flannel_pl.models import projection
from flannel_pl.models.projection import can_stand_in, projected_loss

SIZES = [  # B, T, V, D
    (32, 128, 10_000, 64),
    (7, 33, 10_000, 64),
    (1, 2, 100, 16),
    (5, 50, 1_003, 48),
    (3, 20, 1_003, 768),
    (2, 20, 50_257, 96),
]


def bits(tensor: Tensor | None) -> bytes:
    assert tensor is not None
    return tensor.detach().flatten().view(torch.uint8).numpy().tobytes()


def model_of(num_tokens: int, dim: int, seq_len: int, *, tied: bool = True) -> Any:
    config = GPT2Config(
        vocab_size=num_tokens,
        n_positions=seq_len,
        n_embd=dim,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=tied,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model


def step(model: Any, input_ids: Tensor, labels: Tensor, *, ours: bool, divisor: int = 1) -> dict[str, bytes]:
    """Returns the bits of loss, recorded logits and every gradient of one step."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if ours:
            assert can_stand_in(model.lm_head.weight)
            hidden = model.transformer(input_ids=input_ids).last_hidden_state
            loss, logits = projected_loss(hidden, model.lm_head.weight, labels)
        else:
            output = model(input_ids=input_ids, labels=labels)
            loss, logits = output.loss, output.logits[0, -1].detach()
    (loss / divisor).backward()  # type: ignore[no-untyped-call]
    gradients = {name: bits(parameter.grad) for name, parameter in model.named_parameters()}
    return {"loss": bits(loss), "logits": bits(logits), **gradients}


@pytest.mark.parametrize("param_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_sequences", "seq_len", "num_tokens", "dim"), SIZES)
def test_bits_of_the_models_own_loss(
    num_sequences: int, seq_len: int, num_tokens: int, dim: int, param_dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = model_of(num_tokens, dim, seq_len).to(param_dtype)
    input_ids = torch.randint(0, num_tokens, (num_sequences, seq_len))
    labels = torch.randint(0, num_tokens, (num_sequences, seq_len))
    assert step(model, input_ids, labels, ours=True) == step(model, input_ids, labels, ours=False)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("divisor", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_untied_accumulated_and_on_several_threads(tied: bool, divisor: int, num_threads: int) -> None:
    torch.manual_seed(1)
    model = model_of(500, 32, 24, tied=tied).bfloat16()
    input_ids, labels = torch.randint(0, 500, (2, 6, 24)).unbind()
    labels[2, 5:] = projection.IGNORED
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        ours, theirs = (step(model, input_ids, labels, ours=ours, divisor=divisor) for ours in (True, False))
    finally:
        torch.set_num_threads(before)
    assert ours == theirs


@pytest.mark.parametrize("elements", [1, 999, 10**9])
def test_the_size_of_a_piece_changes_no_bit(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = model_of(300, 16, 20).bfloat16()
    input_ids, labels = torch.randint(0, 300, (2, 4, 20)).unbind()
    expected = step(model, input_ids, labels, ours=True)
    monkeypatch.setattr(projection, "PIECE_ELEMENTS", elements)
    assert step(model, input_ids, labels, ours=True) == expected


def test_it_stands_in_for_nothing_else() -> None:
    W_VD = torch.zeros(2, 2)
    assert not can_stand_in(W_VD)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not can_stand_in(W_VD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert can_stand_in(W_VD)
        assert not can_stand_in(W_VD.to("meta"))
