"""Several parameters in one recording: each row of each beside a plain loop, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from typing_extensions import override

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.quantities.naming import expand, find_named
from flannel_pl.recording.checking.verify import verify
from tests.conftest import SmallData
from tests.training.test_recorder import V, batches, bits_of, fit

STEPS = 4


class Wide(nn.Module):
    """Parameters of one to four dimensions, a number, a tied one, and what a batch norm keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(V, 3)
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, V, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.alias = self.norm.bias

    @override
    def forward(self, tokens_B: Tensor) -> Tensor:
        hidden_BD = self.norm(self.table(tokens_B))
        hidden_BD = self.conv(hidden_BD[:, None, None]).sum(dim=(1, 2)) * self.scale.float()
        logits_BV: Tensor = self.head(hidden_BD)
        return logits_BV


class Module(flannel_pl.TiedGPT2.__mro__[1]):  # type: ignore[name-defined,misc]  # a LightningModule
    def __init__(self, optimizer: Any = torch.optim.AdamW) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net: Any = Wide()
        self.kind = optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        logits_BV = self.net(batch[:, 0])
        loss = nn.functional.cross_entropy(logits_BV, batch[:, 1])
        return {"loss": loss, "logits": logits_BV[0].detach()}

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), lr=0.05)


def plain_rows(module: Any) -> list[dict[str, bytes]]:
    """Name/part -> bytes, from a loop without Lightning."""
    optimizer, rows = module.configure_optimizers(), []
    for batch in batches(STEPS):
        optimizer.zero_grad()
        loss: Any = module.training_step(batch, 0)["loss"]
        loss.backward()
        row = {f"{name}/grads": bytes_of(one.grad) for name, one in module.named_parameters()}
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.01)
        optimizer.step()
        for name, one in module.named_parameters():
            row[f"{name}/values"] = bytes_of(one)
            for part, key in (("momentum", "exp_avg"), ("variance", "exp_avg_sq")):
                if key in optimizer.state[one]:
                    row[f"{name}/{part}"] = bytes_of(optimizer.state[one][key])
        row |= {f"{name}/values": bytes_of(one) for name, one in module.named_buffers()}
        rows.append(row)
    return rows


def bytes_of(tensor: Any) -> bytes:
    return bytes(tensor.detach().contiguous().numpy().tobytes())


def test_every_parameter_and_buffer(tmp_path: Path) -> None:
    parameters = {
        "all": "all",
        "mean": "running_mean",
        "num": "net.norm.num_batches_tracked",
        "b": "*running_v*",
    }
    fit(StepRecorder(tmp_path, "net.table.weight", parameters=parameters), steps=STEPS, module=Module())
    assert verify(tmp_path).ok
    alias = {"net.norm.running_mean": "mean", "net.norm.num_batches_tracked": "num"}
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        seen = set()
        for number, row in enumerate(plain_rows(Module()), start=1):
            for name, expected in row.items():
                owner, part = name.rsplit("/", 1)
                bare = {"values": "embeddings"}.get(part, part)
                ours = bare if owner == "net.table.weight" else f"{alias.get(owner, owner)}/{part}"
                assert bytes(np.asarray(run.tensor(ours)[number]).tobytes()) == expected, name
                seen.add(ours)
        assert {name for name in run.names if "/" in name} <= seen
        assert run.columns["net.head.weight/values"].dims == ("V", "D")
        assert run.columns["net.conv.weight/values"].dims == ("axis0", "axis1", "axis2", "axis3")
        assert run.columns["net.scale/grads"].dtype == "F64"
        assert run.columns["mean/values"].parameter == "net.norm.running_mean"
        assert "net.norm.bias/values" not in run.names  # tied: once, by its first name
        first = Module().net.conv.weight
        assert run.tensor("net.conv.weight/values")[0].tobytes() == bytes_of(first)


def test_an_optimizer_that_keeps_nothing(tmp_path: Path) -> None:
    recorder = StepRecorder(tmp_path, "net.table.weight", parameters={"out": "head.weight"})
    fit(recorder, steps=2, module=Module(torch.optim.SGD))
    with flannel_pl.open_recording(tmp_path) as recording:
        names = {name for name in recording.run(0).names if name.startswith("out/")}
    assert names == {"out/values", "out/grads"}


def test_recorded_tokens_are_those_of_an_untied_output_too(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("2\n7")
    recorder = StepRecorder(
        tmp_path / "x",
        "net.table.weight",
        tokens=str(tmp_path / "ids"),
        parameters={"out": "net.head.weight", "first": "net.table.weight"},
    )
    whole = StepRecorder(tmp_path / "y", "net.table.weight", parameters={"out": "net.head.weight"})
    fit(recorder, steps=2, module=Module())
    fit(whole, steps=2, module=Module())
    with flannel_pl.open_recording(tmp_path / "x") as a, flannel_pl.open_recording(tmp_path / "y") as b:
        for part in ("values", "grads", "momentum", "variance"):
            name = f"out/{part}"
            assert a.run(0).tensor(name)[:].tobytes() == b.run(0).tensor(name)[:, [2, 7]].tobytes()
        assert not [name for name in a.run(0).names if name.startswith("first/")]


def test_the_first_parameters_columns_are_as_without(tmp_path: Path) -> None:
    fit(StepRecorder(tmp_path / "x", "net.table.weight", parameters={"all": "all"}), steps=3, module=Module())
    fit(StepRecorder(tmp_path / "y", "net.table.weight"), steps=3, module=Module())
    more, fewer = bits_of(tmp_path / "x"), bits_of(tmp_path / "y")
    assert all(more[name] == value for name, value in fewer.items() if name != "checksums")


def test_names() -> None:
    net: Any = Wide()
    parametrizations.weight_norm(net.head)
    assert find_named(net, "table.weight")[1] is net.table.weight
    assert find_named(net, "alias")[1] is net.norm.bias
    compiled: Any = nn.Module()
    compiled.net = torch.compile(Wide(), backend="eager")
    assert find_named(compiled, "net.head.weight") == ("net.head.weight", compiled.net.head.weight)
    assert find_named(compiled, "net._orig_mod.head.weight")[1] is compiled.net.head.weight
    assert expand(net, {"x": "*.running_*"}) == dict.fromkeys(("norm.running_mean", "norm.running_var")) | {
        name: name for name in ("norm.running_mean", "norm.running_var")
    }
    for name, sentence in {
        "head.weight": "no parameter 'head.weight' to record; it is computed from head.parametrizations",
        "weight": "several parameters 'weight' to record",
        "nonsense": "no parameter 'nonsense' to record; it has alias, conv.bias",
    }.items():
        with pytest.raises(UserError, match=sentence):
            find_named(net, name)
    older = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2)))
    with pytest.raises(
        UserError, match=r"it is computed from 0\.weight_orig, 0\.weight_u, 0\.weight_v; record"
    ):
        find_named(older, "0.weight")
    with pytest.raises(UserError, match=r"'h\.\*', which is like the name of no parameter"):
        expand(net, {"x": "h.*"})


def test_untied_matrices_from_the_command_line(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", *small_data.arguments, "--experiment.name", "x", "--experiment.output_dir", str(tmp_path)]
    words += [
        "--trainer.max_steps",
        "3",
        "--model.tie_word_embeddings",
        "false",
        "--experiment.seeds",
        "1..2",
    ]
    both = "{embeddings: gpt2.transformer.wte.weight, unembeddings: gpt2.lm_head.weight}"
    assert main([*words, "--recorder.parameters", "{w: nonsense}"]) == 2
    assert "no parameter 'nonsense' to record" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main([*words, "--recorder.parameters", both]) == 0
    assert main([*words, "--recorder.parameters", both]) == 0
    assert verify(tmp_path / "x").ok
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        run = recording.run(1)
        assert run.tensor("unembeddings/values").shape == run.embeddings.shape
        assert "embeddings/values" not in run.names
        assert run.tensor("unembeddings/grads")[1].any()
