"""One training, told to Lightning, to a plain loop and to `transformers.Trainer`; each adapter records it.

Shape suffixes: V vocabulary, D width, B batch.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from typing_extensions import override

import flannel_pl

V, D, B = 12, 3, 4
STEPS = 5
RATE = 0.1


class Net(nn.Module):
    """Predicts a token from the one before it; returns a dict, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Embedding(V, D)
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, V)

    @override
    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits_BTV = self.head(self.norm(self.table(tokens)))
        loss = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits_BTV}


def adam_in_two_groups(net: nn.Module) -> torch.optim.Optimizer:
    matrices = [one for one in net.parameters() if one.ndim > 1]
    others = [one for one in net.parameters() if one.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "lr": 0.02}]
    return torch.optim.AdamW(groups, lr=RATE)


@dataclass(frozen=True)
class Case:
    """What is trained, and how it is recorded."""

    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda net: torch.optim.AdamW(
        net.parameters(), lr=RATE
    )
    accumulate: int = 1
    clip: float | None = None
    clip_by_value: bool = False
    steps: int = STEPS
    device: str = "cpu"
    half: bool = False
    """Trained in float16, with a loss scaler that overflows for some steps, grows, and overflows again."""
    options: dict[str, Any] = field(default_factory=dict)
    """For the recorder."""


CASES = {
    "AdamW": Case(),
    "SGD": Case(lambda net: torch.optim.SGD(net.parameters(), lr=RATE)),
    "SGD momentum": Case(lambda net: torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)),
    "Adam in two groups": Case(adam_in_two_groups),
    "foreach": Case(lambda net: torch.optim.AdamW(net.parameters(), lr=RATE, foreach=True)),
    "fused": Case(lambda net: torch.optim.AdamW(net.parameters(), lr=RATE, fused=True)),
    "fused, clipped": Case(lambda net: torch.optim.AdamW(net.parameters(), lr=RATE, fused=True), clip=0.05),
    "accumulated": Case(accumulate=2),
    "accumulated three times": Case(accumulate=3),
    "clipped": Case(clip=0.05),
    "clipped by value": Case(clip=0.01, clip_by_value=True),
    "some tokens": Case(
        options={"tokens": "rare", "parameters": {"E": "table.weight", "out": "head.weight"}}
    ),
    "every second step": Case(options={"every_n_steps": 2}),
    "accumulated, clipped, some tokens, every second step": Case(
        accumulate=2, clip=0.05, options={"tokens": "rare", "every_n_steps": 2}
    ),
    "all parameters, momentum, accumulated": Case(
        lambda net: torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9),
        accumulate=2,
        options={"parameters": "all"},
    ),
}


def batches(case: Case) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = (B, 2)
    return [
        {
            "tokens": torch.randint(V, shape, generator=generator),
            "labels": torch.randint(V, shape, generator=generator),
        }
        for _ in range(case.steps * case.accumulate)
    ]


TOKEN_SETS = {"rare": torch.tensor([1, 4, 7]).numpy()}


def options_of(case: Case) -> dict[str, Any]:
    return {"parameters": {"E": "table.weight"}, **case.options}


class Module(pl.LightningModule):
    """The net for Lightning."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.case = Net(), case

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        returned = self.net(**batch)
        return {"loss": returned["loss"], "logits": returned["logits"][0, -1].detach()}

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.case.optimizer(self.net)


class Data(pl.LightningDataModule):
    """The batches for Lightning, and which tokens are rare."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.token_sets = case, TOKEN_SETS

    @override
    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(batches(self.case), batch_size=None)  # type: ignore[arg-type]


def in_lightning(case: Case, folder: Path, **settings: Any) -> None:
    options = options_of(case)
    parameters = options.pop("parameters")
    parameter = None
    if not isinstance(parameters, str):
        named = {alias: f"net.{name}" for alias, name in parameters.items()}
        parameter, parameters = named.pop("E"), named
    trainer = pl.Trainer(
        max_steps=case.steps,
        accumulate_grad_batches=case.accumulate,
        gradient_clip_val=case.clip,
        gradient_clip_algorithm="value" if case.clip_by_value else "norm",
        accelerator=case.device,
        devices=1,
        plugins=[MixedPrecision("16-mixed", case.device, scaler_of(case))] if case.half else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[flannel_pl.StepRecorder(folder, parameter, parameters=parameters, **options)],
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Module(case), Data(case))


def loop(case: Case) -> Iterator[tuple[Net, torch.optim.Optimizer, list[dict[str, Tensor]]]]:
    """Yields net, optimizer and the batches of each step; whoever takes them makes the step."""
    net = Net().to(case.device)
    source = ({key: x.to(case.device) for key, x in batch.items()} for batch in batches(case))
    optimizer = case.optimizer(net)
    for _ in range(case.steps):
        yield net, optimizer, [next(source) for _ in range(case.accumulate)]


def scaler_of(case: Case) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(case.device, init_scale=2.0**20, growth_interval=2)


def clip(case: Case, net: nn.Module) -> None:
    if case.clip and case.clip_by_value:
        nn.utils.clip_grad_value_(net.parameters(), case.clip)
    elif case.clip:
        nn.utils.clip_grad_norm_(net.parameters(), case.clip)


def forward(case: Case, net: Net, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.autocast(case.device, torch.float16, enabled=case.half, cache_enabled=False):
        returned: dict[str, Tensor] = net(**batch)
    return returned


def scaled(scaler: torch.amp.GradScaler | None, loss: Tensor) -> Any:
    return loss if scaler is None else scaler.scale(loss)


def make_step(
    case: Case, net: Net, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None
) -> None:
    if scaler is None:
        clip(case, net)
        optimizer.step()
        return
    if case.clip:
        scaler.unscale_(optimizer)
    clip(case, net)
    scaler.step(optimizer)
    scaler.update()


def in_a_loop(case: Case, folder: Path, around: Callable[[], Any] = nullcontext) -> None:
    steps = list(loop(case))
    net, optimizer, _ = steps[0]
    scaler = scaler_of(case) if case.half else None
    with flannel_pl.Recorder(
        folder,
        net,
        optimizer,
        steps=case.steps,
        scaler=scaler,
        token_sets=TOKEN_SETS,
        **options_of(case),
    ) as recorder:
        for _, _, of_step in steps:
            optimizer.zero_grad()
            for batch in of_step:
                returned = forward(case, net, batch)
                scaled(scaler, returned["loss"] / case.accumulate).backward()
                logits = returned["logits"][0, -1].detach()
                with around():
                    recorder.forward(loss=returned["loss"], logits=logits, batch=batch, returned=returned)
            with around():
                recorder.before_step()
            make_step(case, net, optimizer, scaler)
            with around():
                recorder.after_step()


def trainer_of(case: Case, output_dir: Path, **arguments: Any) -> transformers.Trainer:
    net = Net().to(case.device)
    assert not case.clip_by_value, "transformers.Trainer has no such thing"
    wanted = transformers.TrainingArguments(
        **{
            "output_dir": str(output_dir),
            "max_steps": case.steps,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": case.accumulate,
            "max_grad_norm": case.clip or 0.0,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": case.device == "cpu",
            "fp16": case.half,
            "remove_unused_columns": False,
            "label_names": ["labels"],
            **arguments,
        }
    )
    optimizer = case.optimizer(net)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    source: Any = batches(case)

    class InOrder(transformers.Trainer):
        @override
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(source, batch_size=1, collate_fn=lambda rows: rows[0])

    trainer = InOrder(model=net, args=wanted, train_dataset=source, optimizers=(optimizer, constant))
    if case.half:
        trainer.accelerator.scaler = scaler_of(case)
    return trainer


def in_transformers(case: Case, folder: Path) -> None:
    trainer = trainer_of(case, folder.with_name("output"))
    flannel_pl.hf.record(trainer, folder, token_sets=TOKEN_SETS, **options_of(case))
    trainer.train()


def plain_rows(case: Case, name: str = "table.weight") -> Iterator[dict[str, Tensor]]:
    """What each row should hold, on the CPU; nothing here is flannel-pl's."""
    scaler = scaler_of(case) if case.half else None
    for net, optimizer, of_step in loop(case):
        optimizer.zero_grad()
        losses = []
        for batch in of_step:
            returned = forward(case, net, batch)
            scaled(scaler, returned["loss"] / case.accumulate).backward()
            losses.append(returned["loss"].detach())
        weight = net.get_parameter(name)
        assert weight.grad is not None
        scale = scaler.get_scale() if scaler else 1.0
        row = {"grads": weight.grad / scale, "loss": torch.stack(losses).double().mean()}
        make_step(case, net, optimizer, scaler)
        if scaler:
            row["skipped"] = torch.tensor(scaler.get_scale() < scale)
        state = optimizer.state.get(weight, {})
        kept = {key: x for key, x in state.items() if isinstance(x, Tensor) and x.ndim > 0}
        yield {key: x.detach().clone().cpu() for key, x in {**row, "embeddings": weight, **kept}.items()}
