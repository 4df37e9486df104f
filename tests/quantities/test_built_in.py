"""Every row of the built-in quantities, beside float64 numpy on what a plain loop saw."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.errors import UserError
from flannel_pl.quantities import (
    GradientNorms,
    HiddenMean,
    LogitsAt,
    OptimizerState,
    Quantity,
    TokenProbability,
    TopTokens,
    UpdateNorms,
)
from flannel_pl.recording.checking.verify import verify
from tests.quantities.own import Batches, Normed, batches

Array = np.ndarray[Any, Any]

STEPS = 6
ALL: dict[str, Any] = {
    "hidden": HiddenMean,
    "tokens": lambda: TopTokens(k=3),
    "probability": lambda: TokenProbability(of=None),
    "gradients": GradientNorms,
    "updates": UpdateNorms,
    "state": lambda: OptimizerState("max_exp_avg_sq", "largest"),
    "logits": lambda: LogitsAt([[1], [-1]], of="head"),
    "own": Batches,
}


def train(
    folder: Path,
    quantities: list[Quantity],
    *,
    module: Normed | None = None,
    steps: int = STEPS,
    empty: tuple[int, ...] = (),
    ckpt_path: Path | None = None,
    checkpoint_every: int | None = None,
    every_n_steps: int = 1,
    device: str = "cpu",
    **settings: Any,
) -> Normed:
    module = Amsgrad() if module is None else module
    recorder = StepRecorder(
        folder,
        "table.weight",
        quantities=quantities,
        every_n_steps=every_n_steps,
        checkpoint_every=checkpoint_every,
    )
    trainer = Trainer(
        max_steps=steps,
        accelerator=device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        gradient_clip_val=0.01,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader: Any = torch.utils.data.DataLoader(batches(64, empty=empty), batch_size=None)  # type: ignore[arg-type]
        valid: Any = torch.utils.data.DataLoader(batches(4), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(module, loader, valid, ckpt_path=ckpt_path, weights_only=True)
    return module


class Amsgrad(Normed):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1, amsgrad=True)


def float64(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy().copy()


def expected_rows(*, accumulate: int = 1, device: str = "cpu") -> list[dict[str, Array]]:
    """What each row should hold: float64 numpy on what hooks on a plain loop saw."""
    module = Amsgrad().to(device)
    optimizer = module.configure_optimizers()
    hidden: list[Array] = []
    module.norm.register_forward_hook(lambda m, i, output: hidden.append(float64(output)))
    named, source, rows = dict(module.named_parameters()), iter(batches(64)), []
    for step in range(1, STEPS + 1):
        hidden.clear()
        optimizer.zero_grad()
        seen = [next(source).to(device) for _ in range(accumulate)]
        before = {name: float64(one) for name, one in named.items()}
        for batch in seen:
            loss: Any = nn.functional.cross_entropy(module(batch[:, 0]), batch[:, 1]) / accumulate
            loss.backward()
        gradients = [one.grad.double().norm().item() for one in named.values() if one.grad is not None]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.01)
        optimizer.step()
        after = {name: float64(one) for name, one in named.items()}
        state = np.concatenate(hidden)
        means = [one.mean(axis=0) for one in hidden]
        spreads = [np.sqrt(((one - one.mean(axis=0)) ** 2).sum(axis=1).mean()) for one in hidden]
        logits = state @ before["head.weight"].T + before["head.bias"]
        probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        products = before["table.weight"] @ np.mean(means, axis=0)
        rows.append(
            {
                "hidden_mean": np.mean(means, axis=0),
                "hidden_mean/spread": np.mean(spreads),
                "token_probability": probability.mean(axis=0),
                "top_tokens": np.argsort(-products)[:3],
                "top_tokens/products": np.sort(products)[::-1][:3],
                "gradient_norms": np.array(gradients),
                "update_norms": np.array([np.linalg.norm(after[name] - before[name]) for name in named]),
                "update_norms/values": np.array([np.linalg.norm(after[name]) for name in named]),
                "largest": float64(optimizer.state[module.table.weight]["max_exp_avg_sq"]),
                "logits_at": logits[: len(seen[0])][[1, -1]],
                "seen": np.array(step * accumulate * 8),
                "first": float64(seen[0][0, 0]),
            }
        )
    return rows


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("every_n_steps", [1, 2])
def test_every_row(tmp_path: Path, accumulate: int, every_n_steps: int) -> None:
    assert_every_row(tmp_path, accumulate, every_n_steps)


def assert_every_row(tmp_path: Path, accumulate: int, every_n_steps: int, device: str = "cpu") -> None:
    quantities = [make() for make in ALL.values()]
    module = train(
        tmp_path,
        quantities,
        every_n_steps=every_n_steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=accumulate,
        device=device,
    )
    assert "training_step" not in vars(module)
    assert "publish" not in vars(module)
    assert not module.norm._forward_hooks
    assert verify(tmp_path).ok
    expected = expected_rows(accumulate=accumulate, device=device)
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        for row, step in enumerate(run.steps[1:], start=1):
            for name, value in expected[step - 1].items():
                got = np.asarray(run.tensor(name)[row])
                assert got.shape == value.shape, name
                np.testing.assert_allclose(got.astype(np.float64), value, rtol=1e-5, atol=1e-7, err_msg=name)
        names = [name for name, _ in Amsgrad().named_parameters()]
        assert run.columns["gradient_norms"].labels == {"parameter": tuple(names)}
        assert run.columns["seen"].quantity == "tests.quantities.own.Batches"
        first = [torch.linalg.vector_norm(one.detach()) for one in Amsgrad().to(device).parameters()]
        np.testing.assert_allclose(
            run.tensor("update_norms/values")[0],
            torch.stack(first).cpu(),
            # Norms of several tensors at once are added up in another order on a device.
            rtol=0 if device == "cpu" else 1e-6,
        )
        assert np.isnan(run.hidden_mean[0]).all()


def test_the_recorded_bits_and_the_training_are_those_without(tmp_path: Path) -> None:
    modules = [train(tmp_path / "with", [make() for make in ALL.values()]), train(tmp_path / "without", [])]
    assert all(torch.equal(one, other) for one, other in zip(*(m.parameters() for m in modules), strict=True))
    with (
        flannel_pl.open_recording(tmp_path / "with") as a,
        flannel_pl.open_recording(tmp_path / "without") as b,
    ):
        for name in b.run(0).names:
            if name != "checksums":
                assert a.run(0).tensor(name)[:].tobytes() == b.run(0).tensor(name)[:].tobytes(), name


def test_a_batch_that_does_not_count(tmp_path: Path) -> None:
    train(tmp_path, [make() for make in ALL.values()], empty=(2, 3), accumulate_grad_batches=2)
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        assert np.isnan(run.hidden_mean[2]).all()
        assert np.isnan(run.tensor("top_tokens/products")[2]).all()
        assert run.top_tokens[2].tolist() == [-1, -1, -1]
        assert np.isnan(run.first[2])
        assert np.isfinite(run.hidden_mean[3]).all()


def test_what_a_quantity_remembers_is_in_checkpoints(tmp_path: Path) -> None:
    train(tmp_path / "whole", [Batches()], every_n_steps=2)
    with pytest.raises(RuntimeError, match="enough"):
        train(tmp_path / "cut", [Batches()], every_n_steps=2, checkpoint_every=2, module=Failing())
    checkpoint = max((tmp_path / "cut").glob("checkpoint-4-*.ckpt"))
    train(tmp_path / "cut", [Batches()], every_n_steps=2, checkpoint_every=2, ckpt_path=checkpoint)
    with flannel_pl.open_recording(tmp_path / "whole") as a, flannel_pl.open_recording(tmp_path / "cut") as b:
        assert a.run(0).seen[:].tolist() == [0, 16, 32, 48]
        assert b.run(0).seen[:].tolist() == [0, 16, 32, 48]


def test_a_state_of_other_quantities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="enough"):
        train(tmp_path, [Batches()], checkpoint_every=2, module=Failing())
    checkpoint = max(tmp_path.glob("checkpoint-4-*.ckpt"))
    with pytest.raises(UserError, match="the checkpoint has the state of 1 quantities, and 2 are recorded"):
        train(tmp_path, [Batches(), HiddenMean()], ckpt_path=checkpoint)


class Failing(Amsgrad):
    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.num_steps += 1
        if self.num_steps > 5:
            raise RuntimeError("enough")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("quantity", "sentence"),
    [
        (lambda: HiddenMean(of="nrm"), "the model has no module 'nrm'; expected one of, e.g., norm"),
        (lambda: TopTokens(k=13), "TopTokens: 13 of 12 tokens of width 3, by what norm gives"),
        (
            lambda: TokenProbability(of="dead"),
            "TokenProbability of 'dead': the data have the token sets",
        ),
        (lambda: HiddenMean(of="table.weight"), "the model has no module 'table.weight'"),
        (lambda: OptimizerState("exp_avg", "momentum"), "both declare a column momentum"),
        (
            lambda: OptimizerState("row_var", "rows"),
            "AdamW keeps no 'row_var' of table.weight, for 'rows'; it keeps: exp_avg, ",
        ),
        (lambda: LogitsAt([[0]]), "Amsgrad has no stream logits; it has log_probs"),
        (lambda: LogitsAt([[0]], of="haed"), "the model has no module 'haed'; expected one of, e.g., head"),
        (lambda: LogitsAt([[4]], of="head"), r"the places \[\[4\]\], which logits of shape \(4, 12\) do not"),
        (lambda: LogitsAt([[0, 1]], of="head"), r"the logits have shape \(4, 12\); give each place an index"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(tmp_path: Path, quantity: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(tmp_path, [quantity()])
    assert not list(tmp_path.glob("recording*"))


def test_a_stream_that_the_module_has_not(tmp_path: Path) -> None:
    module = Amsgrad()
    module.streams = ()  # type: ignore[assignment]
    with pytest.raises(UserError, match="Amsgrad has no stream log_probs; it has none"):
        train(tmp_path, [TokenProbability(of=None)], module=module)
