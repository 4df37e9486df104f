"""The tied-embedding GPT-2 as a LightningModule: the notebook's initialisation, loss, optimizer and schedule.

Follows the seed notebook ("Flannel 3: ten big bangs") and, where the notebook leans on them, the defaults of
`transformers.Trainer`; docs/fidelity.md lists every such default and how equality was checked.

Shape suffixes: B batch, T positions, V vocabulary, D hidden dimension.
"""

import inspect
import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import GPT2Config, GPT2LMHeadModel
from typing_extensions import override

from flannel_pl.errors import UserError
from flannel_pl.models.projection import Publish, can_stand_in, projected_loss, publish_streams
from flannel_pl.models.schedules import rate_factor

PARAM_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class TiedGPT2(LightningModule):
    """A small GPT-2 whose input embedding is also its output projection.

    The network is built in `configure_model`, when the device is known, because the embedding is drawn there:

    1. `torch.manual_seed(init_seed)`, then Hugging Face's own initialisation on the CPU in float32;
    2. everything is cast to `param_dtype`;
    3. the embedding is drawn again, N(0, `init_scale`) in float32 on `init_on`, and cast.

    Training is next-token prediction, by default with AdamW and a linear decay of the learning rate to 0 over
    `trainer.max_steps`, without warm-up. There is no dropout.

    Args:
        vocab_size: V, number of tokens; must equal the tokenizer's.
        hidden_dim: D, width of the embedding; a multiple of `n_head`.
        n_layer: Number of transformer blocks.
        n_head: Number of attention heads.
        max_seq_len: T, positions per training window.
        tie_word_embeddings: Use the embedding matrix as the output projection too; false trains a separate
            one.
        param_dtype: Type of the weights, and so of Adam's state. `bfloat16` together with
            `trainer.precision bf16-mixed` is the notebook's arithmetic.
        init_scale: Standard deviation of the initial embedding.
        init_seed: Seed of the initial weights; null takes torch's current seed (in an experiment: the run's).
        init_on: Draw the embedding on the training `device`, as the notebook does, or always on the `cpu`.
            The generators differ, so the same seed gives other numbers on another kind of device.
        ff_dim: Width of a block's feed-forward layer; null = 4 D.
        init_range: Standard deviation of all other initial weights, as GPT-2's `initializer_range`.
        head_init: With `tie_word_embeddings false`, whether the output projection begins as a `copy` of the
            embedding, or is `drawn` with `init_range` as GPT-2 does it.
        optimizer: Another optimizer, by class_path and init_args, which has its own learning rate, decay and
            so on in place of this model's; null = torch's AdamW.
        learning_rate: Largest learning rate of the schedule.
        lr_schedule: `linear` and `cosine` decay to 0 over max_steps, `constant` does not; or a scheduler of
            torch by class_path and init_args, which is stepped after every step.
        warmup_steps: Steps in which the rate grows linearly from 0, before that.
        weight_decay: AdamW's decoupled decay; never applied to biases and layer norms.
        adam_beta1: Decay of Adam's first moment.
        adam_beta2: Decay of Adam's second moment.
        adam_epsilon: Added to the square root of Adam's second moment.

    Raises:
        UserError: If sizes do not fit together; all mistakes are named at once.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from flannel_pl import FlannelData, TiedGPT2
        >>> trainer = Trainer(max_steps=1000, precision="bf16-mixed", gradient_clip_val=1.0)
        >>> trainer.fit(TiedGPT2(), FlannelData())  # doctest: +SKIP
    """

    EMBEDDING = "gpt2.transformer.wte.weight"
    """Name of the embedding among the module's parameters; shape (V, D)."""

    streams = ("log_probs", "probability_sums", "logits")
    """What `publish` is given of every forward pass: log-probabilities in pieces (n, V), float32; once the
    sums over all positions of each token's probability (V,), float32; and once all logits (B, T, V)."""

    REPLACED_BY_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
    """Arguments that say nothing where there is an `optimizer`; a config then has null for them."""

    publish: Publish | None = None
    """Set by a recorder that wants to see the streams."""

    def __init__(
        self,
        vocab_size: int = 10_000,
        hidden_dim: int = 64,
        n_layer: int = 2,
        n_head: int = 2,
        max_seq_len: int = 128,
        tie_word_embeddings: bool = True,
        param_dtype: Literal["bfloat16", "float32"] = "bfloat16",
        init_scale: float = 0.02,
        init_seed: int | None = None,
        init_on: Literal["device", "cpu"] = "device",
        ff_dim: int | None = None,
        init_range: float = 0.02,
        head_init: Literal["drawn", "copy"] = "drawn",
        optimizer: OptimizerCallable | None = None,
        learning_rate: float | None = 1e-3,
        lr_schedule: Literal["linear", "constant", "cosine"] | LRSchedulerCallable = "linear",
        warmup_steps: int = 0,
        weight_decay: float | None = 0.0,
        adam_beta1: float | None = 0.9,
        adam_beta2: float | None = 0.999,
        adam_epsilon: float | None = 1e-8,
    ) -> None:
        super().__init__()
        # What makes optimizer and scheduler is no plain value, so that a checkpoint could not be read.
        self.save_hyperparameters(ignore=["optimizer"] + ["lr_schedule"] * (not isinstance(lr_schedule, str)))
        self._optimizer, self._lr_schedule = optimizer, lr_schedule
        _check(self.hparams, has_optimizer=optimizer is not None)
        self.gpt2: Any = None  # a GPT2LMHeadModel, once configure_model has run

    @override
    def configure_model(self) -> None:
        """Builds and initialises the network; called by the Trainer once the device is known.

        Without a Trainer, e.g. in `load_from_checkpoint`, the embedding is drawn on the CPU.
        """
        if self.gpt2 is not None:
            return
        hparams: Any = self.hparams
        device = torch.device("cpu")
        if hparams.init_on == "device" and self._trainer is not None:
            device = self._trainer.strategy.root_device
        param_dtype = PARAM_DTYPES[hparams.param_dtype]
        torch.manual_seed(torch.initial_seed() if hparams.init_seed is None else hparams.init_seed)
        with torch.device("cpu"):  # Lightning calls this in a context of the device, which draws otherwise
            gpt2: Any = GPT2LMHeadModel(self._gpt2_config())
        gpt2.loss_type = "ForCausalLM"  # transformers' default, but unnamed it is complained about
        gpt2.to(param_dtype)
        W_VD = torch.randn(hparams.vocab_size, hparams.hidden_dim, dtype=torch.float32, device=device)
        with torch.no_grad():
            gpt2.transformer.wte.weight.copy_((W_VD * hparams.init_scale).to(param_dtype))
            if hparams.head_init == "copy":
                gpt2.lm_head.weight.copy_(gpt2.transformer.wte.weight)
        self.gpt2 = gpt2.train()

    def on_meta(self) -> nn.Module:
        """Returns a module like this one, with parameters that have shape and type, but no values."""
        hparams: Any = self.hparams
        planned: Any = nn.Module()
        with torch.device("meta"):
            gpt2: Any = GPT2LMHeadModel(self._gpt2_config())
        planned.gpt2 = gpt2.to(PARAM_DTYPES[hparams.param_dtype])
        return cast("nn.Module", planned)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns name -> shape of every parameter the network will have; allocates none of them."""
        return {name: tuple(parameter.shape) for name, parameter in self.on_meta().named_parameters()}

    def _gpt2_config(self) -> GPT2Config:
        hparams: Any = self.hparams
        return GPT2Config(
            vocab_size=hparams.vocab_size,
            n_positions=hparams.max_seq_len,
            n_embd=hparams.hidden_dim,
            n_layer=hparams.n_layer,
            n_head=hparams.n_head,
            n_inner=hparams.ff_dim,
            initializer_range=hparams.init_range,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=hparams.tie_word_embeddings,
            use_cache=False,
            # GPT-2's own token ids lie outside a smaller vocabulary, which transformers warns about.
            bos_token_id=None,
            eos_token_id=None,
        )

    @override
    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Returns the logits (B, T, V) of the tokens `input_ids_BT` (B, T), int64."""
        self.configure_model()
        logits_BTV: Tensor = self.gpt2(input_ids=input_ids_BT).logits
        return logits_BTV

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Computes the loss of one batch.

        Args:
            batch: `input_ids` and `labels`, both (B, T) int64, as `FlannelData` makes them. GPT2LMHeadModel
                shifts the labels by one position itself.
            batch_idx: Not used.

        Returns:
            `loss`, a float32 scalar, and `logits` (V), those of the first sequence's last position, for a
            recorder. One row only: all of them would be (B, T, V).
        """
        W_VD = self.gpt2.lm_head.weight
        if can_stand_in(W_VD):
            hidden_BTD = self.gpt2.transformer(input_ids=batch["input_ids"]).last_hidden_state
            loss, logits_V = projected_loss(hidden_BTD, W_VD, batch["labels"], self.publish)
        else:
            output = self.gpt2(input_ids=batch["input_ids"], labels=batch["labels"])
            loss, logits_V = output.loss, output.logits[0, -1].detach()
            if self.publish is not None:
                publish_streams(output.logits, self.publish)
        self.log("loss", loss.detach(), prog_bar=True)
        return {"loss": loss, "logits": logits_V}

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns the optimizer, by default AdamW, not fused (that rounds differently), with its schedule."""
        hparams: Any = self.hparams
        if self._optimizer is not None:
            optimizer = self._optimizer(self._parameter_groups())
        else:
            optimizer = torch.optim.AdamW(
                self._parameter_groups(),
                lr=hparams.learning_rate,
                betas=(hparams.adam_beta1, hparams.adam_beta2),
                eps=hparams.adam_epsilon,
            )
        if isinstance(self._lr_schedule, str):
            factor = rate_factor(
                self._lr_schedule, max_steps=self.trainer.max_steps, warmup_steps=hparams.warmup_steps
            )
            scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        else:
            scheduler = self._lr_schedule(optimizer)
        every_step = {"scheduler": scheduler, "interval": "step", "monitor": "loss"}
        return cast("OptimizerLRScheduler", {"optimizer": optimizer, "lr_scheduler": every_step})

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the total norm as transformers.Trainer does: summed up in the order of `parameters()`.

        Lightning goes by the optimizer's groups; a norm in float32 then differs in its last bit.
        """
        by_norm = gradient_clip_algorithm in (None, "norm")
        is_fused = getattr(
            optimizer, "_step_supports_amp_scaling", False
        )  # Lightning knows when to refuse that
        if gradient_clip_val and by_norm and not is_fused:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Splits the parameters as transformers.Trainer does: biases and layer norms are never decayed."""
        hparams: Any = self.hparams
        undecayed = set(self._undecayed_names())
        named = list(self.named_parameters())
        decayed: dict[str, Any] = {"params": [one for name, one in named if name not in undecayed]}
        if self._optimizer is None:  # else it has a decay of its own
            decayed["weight_decay"] = hparams.weight_decay
        return [decayed, {"params": [one for name, one in named if name in undecayed], "weight_decay": 0.0}]

    def _undecayed_names(self) -> Iterator[str]:
        for module_name, module in self.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                if isinstance(module, nn.LayerNorm) or name == "bias":
                    yield f"{module_name}.{name}"


def _check(hparams: Any, *, has_optimizer: bool) -> None:
    """Refuses sizes and rates that no run could be trained with."""
    sizes = ("vocab_size", "hidden_dim", "n_layer", "n_head", "max_seq_len")
    mistakes = [
        f"model.{name} is {hparams[name]}, expected at least 1" for name in sizes if hparams[name] < 1
    ]
    if hparams.ff_dim is not None and hparams.ff_dim < 1:
        mistakes.append(f"model.ff_dim is {hparams.ff_dim}, expected at least 1, or null for 4 x hidden_dim")
    if hparams.max_seq_len == 1:
        mistakes.append("model.max_seq_len is 1, expected at least 2: the loss predicts a later position")
    if hparams.n_head > 0 and hparams.hidden_dim % hparams.n_head:
        mistakes.append(
            f"model.hidden_dim {hparams.hidden_dim} is not divisible by model.n_head {hparams.n_head}; "
            "change one of them"
        )
    if hparams.head_init == "copy" and hparams.tie_word_embeddings:
        mistakes.append(
            "model.head_init is copy, but the head is the embedding itself; leave it out, or give "
            "model.tie_word_embeddings false"
        )
    replaced = TiedGPT2.REPLACED_BY_OPTIMIZER
    defaults = inspect.signature(TiedGPT2).parameters
    if has_optimizer:
        mistakes += [
            f"model.{name} is {hparams[name]}, but model.optimizer has its own; give it there, in init_args"
            for name in replaced
            if hparams[name] not in (None, defaults[name].default)
        ]
    else:
        mistakes += [f"model.{name} is null, expected a number" for name in replaced if hparams[name] is None]
    numbers = {name: value for name, value in hparams.items() if isinstance(value, int | float)}
    rates = ("init_scale", "init_range", "learning_rate", "weight_decay", "adam_epsilon", "warmup_steps")
    mistakes += [
        f"model.{name} is {numbers[name]}, expected 0 or more"
        for name in rates
        if name in numbers and not numbers[name] >= 0
    ]
    mistakes += [
        f"model.{name} is {numbers[name]}, expected at least 0 and below 1"
        for name in ("adam_beta1", "adam_beta2")
        if name in numbers and not 0 <= numbers[name] < 1
    ]
    mistakes += [
        f"model.{name} is {value}, expected a finite number"
        for name, value in numbers.items()
        if not math.isfinite(value)
    ]
    if mistakes:
        raise UserError("; ".join(mistakes))
