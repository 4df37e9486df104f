"""What may watch every step of a loop of one's own: flannel-pl and its peers, each used as its manual says.

A loop makes one, calls it at three moments of every step, closes it, and asks it for the last step again.
"""

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import override

import flannel_pl

EMBEDDING = "gpt2.transformer.wte.weight"
"""Its name in the model of `loops.plain`."""

KINDS = ("values", "grads", "momentum", "variance")
"""What a step does to a parameter: its new values, its gradient before clipping, Adam's two moments."""


class Tool:
    """Watches nothing: the bare loop.

    Args:
        folder: Where it may write; what lies there in the end is what it keeps.
        model: What is trained; a call of it returns the loss.
        optimizer: Its AdamW.
        num_steps: How many steps there will be.
    """

    words: ClassVar[str] = "nothing"
    package: ClassVar[str] = ""
    """What has to be installed besides what flannel-pl needs; empty = nothing."""

    def __init__(
        self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int
    ) -> None:
        self.folder, self.model, self.optimizer, self.num_steps = folder, model, optimizer, num_steps

    def before_clipping(self) -> None:
        """Gradients are whole, and not clipped."""

    def before_step(self, step: int, loss: Tensor) -> None:
        """Gradients are clipped."""

    def after_step(self, step: int, loss: Tensor) -> None:
        """Weights and moments are new."""

    def close(self) -> None:
        """From here on all that it keeps is in the folder."""

    def read_back(self) -> dict[str, Tensor]:
        """Returns those of `KINDS` that it has of the last step's embedding."""
        return {}


class Recorded(Tool):
    """`flannel_pl.Recorder` of the embedding, as docs/python.md has it."""

    words = "flannel-pl of the embedding"
    parameters: ClassVar[Any] = {"E": EMBEDDING}
    name: ClassVar[str] = "E"

    @override
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        options = {"parameters": self.parameters, "steps": self.num_steps}
        self._recorder = flannel_pl.Recorder(self.folder / "run", self.model, self.optimizer, **options)
        self._recorder.__enter__()

    @override
    def before_clipping(self) -> None:
        self._recorder.before_step()

    @override
    def after_step(self, step: int, loss: Tensor) -> None:
        self._recorder.after_step(loss=loss)

    @override
    def close(self) -> None:
        self._recorder.__exit__(None, None, None)

    @override
    def read_back(self) -> dict[str, Tensor]:
        with flannel_pl.open_recording(self.folder / "run", framework="torch") as recording:
            kept = recording.run(0)[self.name]
            return {kind: getattr(kept, kind)[-1] for kind in KINDS}


class AllRecorded(Recorded):
    """The same of every parameter."""

    words = "flannel-pl of every parameter"
    parameters: ClassVar[Any] = "all"
    name = EMBEDDING


class Trainscope(Tool):
    """As its README has it: called between clipping and the step, with the loss as a number."""

    words = "trainscope"
    package = "trainscope"
    options: ClassVar[dict[str, int]] = {}

    @override
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        trainscope = importlib.import_module("trainscope")
        config = importlib.import_module("trainscope.core.config").TrainScopeConfig(
            run_dir=str(self.folder), run_name="run", **self.options
        )
        self._scope = trainscope.TrainScope(self.model, self.optimizer, config=config).attach()

    @override
    def before_step(self, step: int, loss: Tensor) -> None:
        self._scope.step(loss.item(), batch_index=step)

    @override
    def close(self) -> None:
        self._scope.detach()


class FullTrainscope(Trainscope):
    """The same with histograms and activations at every step, not at every 50th and 5th."""

    words = "trainscope, all at every step"
    options: ClassVar[dict[str, int]] = {"histogram_every_n_steps": 1, "activation_metrics_every_n_steps": 1}


class Wandb(Tool):
    """`watch` before the first step, the loss logged at every one; offline, so that no network is in it."""

    words = "W&B watch, all at every step"
    package = "wandb"

    @override
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        for folder in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            os.environ[folder] = str(self.folder.parent / "elsewhere")  # nothing of it stays at home
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        wandb = importlib.import_module("wandb")
        settings = wandb.Settings(silent=True)
        self._run = wandb.init(project="peers", mode="offline", dir=str(self.folder), settings=settings)
        self._run.watch(self.model, log="all", log_freq=1)

    @override
    def after_step(self, step: int, loss: Tensor) -> None:
        self._run.log({"loss": loss.item()}, step=step)

    @override
    def close(self) -> None:
        self._run.finish()


class TorchCheckpoints(Tool):
    """A general checkpoint of PyTorch's tutorials after every step, each a file of its own."""

    words = "torch.save of model and optimizer"

    @override
    def after_step(self, step: int, loss: Tensor) -> None:
        state = {
            "step": step,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "loss": loss,
        }
        torch.save(state, self.folder / f"{step}.pt")

    @override
    def read_back(self) -> dict[str, Tensor]:
        state = torch.load(self.folder / f"{self.num_steps - 1}.pt", weights_only=True)
        index = [name for name, _ in self.model.named_parameters()].index(EMBEDDING)
        moments = state["optimizer_state_dict"]["state"][index]
        values = state["model_state_dict"][EMBEDDING]
        return {"values": values, "momentum": moments["exp_avg"], "variance": moments["exp_avg_sq"]}


class SafetensorsCheckpoints(Tool):
    """Weights, gradients and moments of every parameter after every step, each step a file of its own."""

    words = "safetensors of weights, gradients, moments"

    @override
    def before_clipping(self) -> None:
        # Clipping writes over them.
        self._grads = {name: one.grad.clone() for name, one in self._parameters() if one.grad is not None}

    @override
    def after_step(self, step: int, loss: Tensor) -> None:
        tensors = {f"{name}/grads": grad for name, grad in self._grads.items()}
        for name, one in self._parameters():
            state = self.optimizer.state[one]
            tensors[f"{name}/values"] = one.detach()
            tensors[f"{name}/momentum"], tensors[f"{name}/variance"] = state["exp_avg"], state["exp_avg_sq"]
        save_file(tensors, self.folder / f"{step}.safetensors")

    @override
    def read_back(self) -> dict[str, Tensor]:
        tensors = load_file(self.folder / f"{self.num_steps - 1}.safetensors")
        return {kind: tensors[f"{EMBEDDING}/{kind}"] for kind in KINDS}

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.named_parameters())


TOOLS: dict[str, type[Tool]] = {
    "peers-embedding": Recorded,
    "peers-all": AllRecorded,
    "peers-trainscope": Trainscope,
    "peers-trainscope-full": FullTrainscope,
    "peers-wandb": Wandb,
    "peers-torch": TorchCheckpoints,
    "peers-safetensors": SafetensorsCheckpoints,
}
"""Loop of benchmarks/loops.py -> what watches it."""


def title(tool: type[Tool]) -> str:
    """Returns what it is called in a table, with the version that is installed."""
    if not tool.package or is_missing(tool):
        return tool.words
    return f"{tool.words} ({tool.package} {importlib.metadata.version(tool.package)})"


def is_missing(tool: type[Tool]) -> bool:
    """Tells whether what it needs is not installed."""
    return bool(tool.package) and importlib.util.find_spec(tool.package) is None
