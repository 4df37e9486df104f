"""The module: what is tied, what is drawn, what is decayed."""

import logging
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from flannel_pl import TiedGPT2
from flannel_pl.errors import UserError
from flannel_pl.models.tied_gpt2 import TiedGPT2 as Module


def built(**settings: Any) -> Module:
    module = TiedGPT2(**settings)
    module.trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=10, logger=False, enable_checkpointing=False
    )
    module.configure_model()
    return module


def embedding(module: Module) -> torch.Tensor:
    return module.get_parameter(Module.EMBEDDING)


def test_the_notebooks_model_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in built().parameters()) == 748_288
    assert sum(parameter.numel() for parameter in built(tie_word_embeddings=False).parameters()) == 1_388_288


def test_input_and_output_embedding_are_one_parameter() -> None:
    module = built()
    assert module.gpt2.lm_head.weight is embedding(module)
    names = [name for name, _ in module.named_parameters()]
    assert Module.EMBEDDING in names
    assert len(names) == len(set(names))
    untied = built(tie_word_embeddings=False)
    assert untied.gpt2.lm_head.weight is not embedding(untied)


def test_the_initial_embedding_is_the_notebooks() -> None:
    # Written out as in the notebook: the model's own initialisation draws first, then the embedding.
    module = built(init_seed=42)
    torch.manual_seed(42)
    from transformers import GPT2Config, GPT2LMHeadModel

    logging.getLogger("transformers").setLevel(logging.ERROR)
    GPT2LMHeadModel(GPT2Config(vocab_size=10_000, n_positions=128, n_embd=64, n_layer=2, n_head=2))
    expected = (torch.randn(10_000, 64, dtype=torch.float32) * 0.02).to(torch.bfloat16)
    assert torch.equal(embedding(module), expected)


def test_the_weights_are_drawn_on_the_cpu_wherever_lightning_has_tensors_made() -> None:
    """It calls configure_model in a context of the device, whose generator draws other numbers."""
    expected, module = built(init_seed=42), TiedGPT2(init_seed=42)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    module.trainer = trainer
    with torch.device("meta"):  # a device that draws nothing stands in for one that draws otherwise
        module.configure_model()
    for (name, weight), other in zip(module.named_parameters(), expected.parameters(), strict=True):
        assert weight.device.type == "cpu", name
        assert torch.equal(weight, other), name


def test_init_seed_fixes_the_weights_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    torch.rand(17)
    one = built(init_seed=9)
    torch.manual_seed(9)
    torch.rand(3)
    other = built()
    assert torch.equal(embedding(one), embedding(other))
    assert not torch.equal(embedding(one), embedding(built(init_seed=10)))


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_every_weight_has_the_wanted_type(name: str, dtype: torch.dtype) -> None:
    assert {parameter.dtype for parameter in built(param_dtype=name).parameters()} == {dtype}


def test_weight_decay_spares_biases_and_layer_norms() -> None:
    module = built(weight_decay=0.1, n_layer=1)
    optimizers: Any = module.configure_optimizers()
    decayed, spared = optimizers["optimizer"].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    assert all(name.endswith("bias") or ".ln_" in name for name in spared_names)
    assert sum(len(group["params"]) for group in (decayed, spared)) == len(names)
    assert Module.EMBEDDING not in spared_names


@pytest.mark.parametrize(
    ("schedule", "rates"), [("linear", [1.0, 0.9, 0.8, 0.7]), ("constant", [1.0, 1.0, 1.0, 1.0])]
)
def test_learning_rates(schedule: str, rates: list[float]) -> None:
    optimizers: Any = built(learning_rate=1.0, lr_schedule=schedule).configure_optimizers()
    seen = []
    for _ in rates:
        seen.append(optimizers["optimizer"].param_groups[0]["lr"])
        optimizers["optimizer"].step()
        optimizers["lr_scheduler"]["scheduler"].step()
    assert seen == pytest.approx(rates)


def test_building_and_running_it_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    module = built(vocab_size=50, hidden_dim=8, max_seq_len=8)
    tokens = torch.arange(8)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.gpt2(input_ids=tokens, labels=tokens)
    assert not [record for record in caplog.records if record.name.startswith("transformers")]


def test_forward_returns_logits() -> None:
    module = built(vocab_size=50, hidden_dim=8, max_seq_len=8)
    assert module(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 50)


def test_mistakes_are_named_together() -> None:
    with pytest.raises(UserError, match=r"n_layer is 0.*hidden_dim 10 is not divisible by model.n_head 3"):
        TiedGPT2(n_layer=0, hidden_dim=10, n_head=3)
