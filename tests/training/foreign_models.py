"""Models, optimizers and settings that are not ours, for `test_foreign_models.py`. Small, on the CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from typing_extensions import override

V, D = 12, 4


class Net(nn.Module):
    """Predicts a token from the one before it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(V, D, **options)
        self.head = nn.Linear(D, V)

    def forward(self, tokens_B: Tensor) -> Tensor:
        logits_BV: Tensor = self.head(self.table(tokens_B))
        return logits_BV


class Matrices(Net):
    """Has nothing but matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(D, V, bias=False)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.table.weight


class WeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.head)


class Frozen(Net):
    """The table is trained by nobody, and no optimizer holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.table.weight.requires_grad_(False)


class Branch(Net):
    """The table is unused in the first two steps and now and then later."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(V))
        self.num_calls = 0

    @override
    def forward(self, tokens_B: Tensor) -> Tensor:
        self.num_calls += 1
        if self.num_calls <= 2 or self.num_calls % 4 == 0:
            return self.bias.expand(len(tokens_B), V) * 1.5
        return super().forward(tokens_B) + self.bias


class HuggingFace(nn.Module):
    """One of transformers' models with a language modelling head."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import transformers

        sizes = {
            "Bert": {"num_hidden_layers": 1, "intermediate_size": 8, "is_decoder": True},
            "GPTNeoX": {"num_hidden_layers": 1, "intermediate_size": 8, "tie_word_embeddings": True},
            "T5": {"num_layers": 1, "d_ff": 8, "d_kv": 2, "num_heads": 2, "d_model": D},
        }[name]
        common: dict[str, Any] = {
            "vocab_size": V,
            "hidden_size": D,
            "num_attention_heads": 2,
            "max_position_embeddings": 8,
        }
        common |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_rate": 0.0}
        common |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
        config = getattr(transformers, f"{name}Config")(**(common | sizes))
        kind = {
            "Bert": "BertLMHeadModel",
            "GPTNeoX": "GPTNeoXForCausalLM",
            "T5": "T5ForConditionalGeneration",
        }
        self.model = getattr(transformers, kind[name])(config)
        self.is_t5 = name == "T5"

    @override
    def forward(self, tokens_B: Tensor) -> Tensor:
        ids = tokens_B[:, None]
        more = {"decoder_input_ids": ids} if self.is_t5 else {}
        logits_BV: Tensor = self.model(input_ids=ids, **more).logits[:, -1]
        return logits_BV


class Lion(torch.optim.Optimizer):
    """Keeps one moment, under Adam's name, and steps by its sign."""

    def __init__(self, params: Any, lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @override
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                    p.add_(
                        (m * group["betas"][0] + p.grad * (1 - group["betas"][0])).sign(), alpha=-group["lr"]
                    )
                    m.lerp_(p.grad, 1 - group["betas"][1])
        return loss


class Late(Lion):
    """Keeps nothing before its second step."""

    @override
    def step(self, closure: Any = None) -> Any:
        before = {
            id(p): dict(self.state[p])
            for group in self.param_groups
            for p in group["params"]
            if p in self.state
        }
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) not in before and p in self.state:
                    self.state[p].clear()
                    self.state[p]["begun"] = True
        return loss


class Wrapped(torch.optim.Optimizer):
    """Holds another optimizer, whose state is its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-2})
        self.base = torch.optim.AdamW(self.param_groups, lr=1e-2)
        self.state = self.base.state

    @override
    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


class SAM(Wrapped):
    """Sharpness-aware minimisation: takes the gradient a second time, where the first one leads uphill."""

    @override
    def step(self, closure: Any = None) -> Any:
        assert closure is not None
        with torch.enable_grad():
            loss = closure()
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        with torch.no_grad():
            for p in moved:
                p.add_(p.grad, alpha=1e-3)
        with torch.enable_grad():
            closure()
        self.base.step()
        return loss


@dataclass(frozen=True)
class Case:
    """A model, an optimizer and settings of a Trainer."""

    model: Callable[[], nn.Module] = Net
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    options: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.02})
    name: str = "table.weight"
    dtype: torch.dtype = torch.float32
    trainer: Mapping[str, Any] = field(default_factory=dict)
    two_groups: bool = False


CASES: dict[str, Case] = {
    "SGD": Case(optimizer=torch.optim.SGD),
    "SGD momentum": Case(optimizer=torch.optim.SGD, options={"lr": 0.02, "momentum": 0.9}),
    "Adam": Case(optimizer=torch.optim.Adam),
    "Adam decayed": Case(optimizer=torch.optim.Adam, options={"lr": 0.02, "weight_decay": 0.1}),
    "AdamW": Case(),
    "AdamW amsgrad": Case(options={"lr": 0.02, "amsgrad": True}),
    "AdamW fused": Case(options={"lr": 0.02, "fused": True}),
    "AdamW foreach": Case(options={"lr": 0.02, "foreach": True}),
    "AdamW capturable rate": Case(options={"lr": torch.tensor(0.02)}),
    "AdamW bfloat16": Case(dtype=torch.bfloat16),
    "AdamW float64": Case(dtype=torch.float64),
    "NAdam": Case(optimizer=torch.optim.NAdam),
    "RAdam": Case(optimizer=torch.optim.RAdam),
    "Adamax": Case(optimizer=torch.optim.Adamax),
    "RMSprop": Case(optimizer=torch.optim.RMSprop),
    "Adagrad": Case(optimizer=torch.optim.Adagrad),
    "Adadelta": Case(optimizer=torch.optim.Adadelta),
    "Rprop": Case(optimizer=torch.optim.Rprop),
    "ASGD": Case(optimizer=torch.optim.ASGD),
    "Adafactor": Case(optimizer=torch.optim.Adafactor, options={}),
    "Muon": Case(model=Matrices, optimizer=torch.optim.Muon),
    "Lion": Case(optimizer=Lion, options={}),
    "Late": Case(optimizer=Late, options={}),
    "wrapped": Case(optimizer=Wrapped, options={}),
    "sparse SGD": Case(model=lambda: Net(sparse=True), optimizer=torch.optim.SGD),
    "sparse Adagrad": Case(model=lambda: Net(sparse=True), optimizer=torch.optim.Adagrad),
    "tied": Case(model=Tied),
    "tied by its other name": Case(model=Tied, name="head.weight"),
    "weight norm": Case(model=WeightNorm),
    "weight norm's direction": Case(model=WeightNorm, name="head.parametrizations.weight.original1"),
    "frozen": Case(model=Frozen),
    "branch": Case(model=Branch),
    "branch SGD momentum": Case(
        model=Branch, optimizer=torch.optim.SGD, options={"lr": 0.02, "momentum": 0.9}
    ),
    "padding": Case(model=lambda: Net(padding_idx=3)),
    "accumulated": Case(trainer={"accumulate_grad_batches": 3}),
    "clipped by norm": Case(trainer={"gradient_clip_val": 0.01}),
    "clipped by value": Case(trainer={"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"}),
    "accumulated and clipped": Case(trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 0.01}),
    "two groups": Case(two_groups=True),
    "two groups clipped": Case(two_groups=True, trainer={"gradient_clip_val": 0.01}),
    "bf16-mixed": Case(trainer={"precision": "bf16-mixed"}),
    "bf16-mixed clipped": Case(trainer={"precision": "bf16-mixed", "gradient_clip_val": 0.01}),
    "BERT": Case(model=lambda: HuggingFace("Bert"), name="model.bert.embeddings.word_embeddings.weight"),
    "GPT-NeoX": Case(model=lambda: HuggingFace("GPTNeoX"), name="model.gpt_neox.embed_in.weight"),
    "T5": Case(model=lambda: HuggingFace("T5"), name="model.shared.weight"),
}


def build(case: Case) -> nn.Module:
    torch.manual_seed(5)
    return case.model().to(case.dtype)


def optimizer_of(case: Case, net: nn.Module) -> torch.optim.Optimizer:
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    if not case.two_groups:
        return case.optimizer([p for _, p in trained], **case.options)
    groups = [
        {"params": [p for name, p in trained if "bias" in name], "lr": 0.1},
        {"params": [p for name, p in trained if "bias" not in name]},
    ]
    return case.optimizer(groups, **case.options)


class Module(LightningModule):
    """Any of the models, as a user would wrap it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.case = build(case), case

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        logits_BV = self.net(batch[:, 0])
        loss = nn.functional.cross_entropy(logits_BV, batch[:, 1])
        return {"loss": loss, "logits": logits_BV[0].detach()}

    @override
    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.case, self.net)
        if isinstance(optimizer.param_groups[0]["lr"], Tensor):
            return optimizer
        halving = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving, "interval": "step"}}
