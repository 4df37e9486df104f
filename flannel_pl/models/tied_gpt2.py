"""The tied-embedding GPT-2 as a LightningModule: the notebook's initialisation, loss, optimizer and schedule.

Follows the seed notebook ("Flannel 3: ten big bangs") and, where the notebook leans on them, the defaults of
`transformers.Trainer`; docs/fidelity.md lists every such default and how equality was checked.

Shape suffixes: B batch, T positions, V vocabulary, D hidden dimension.
"""

from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from typing_extensions import override

from flannel_pl.errors import UserError
from flannel_pl.models.language_model import (
    PARAM_DTYPES,
    LanguageModel,
    mistakes_of_sizes,
    mistakes_of_training,
)
from flannel_pl.models.projection import Publish, can_stand_in, projected_loss, publish_streams


class TiedGPT2(LanguageModel):
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
        super().__init__(optimizer=optimizer, lr_schedule=lr_schedule)
        self.save_hyperparameters(ignore=self.no_values)
        _check(self)
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


def _check(model: TiedGPT2) -> None:
    """Refuses sizes and rates that no run could be trained with."""
    hparams: Any = model.hparams
    mistakes = mistakes_of_sizes(model)
    if hparams.head_init == "copy" and hparams.tie_word_embeddings:
        mistakes.append(
            "model.head_init is copy, but the head is the embedding itself; leave it out, or give "
            "model.tie_word_embeddings false"
        )
    mistakes += mistakes_of_training(model)
    if mistakes:
        raise UserError("; ".join(mistakes))
