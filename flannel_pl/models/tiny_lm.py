"""The language model of the later experiments, Thimble 8 to Marble: torch's own encoder under a causal mask.

Of the size and the arithmetic of `TiedGPT2`, and yet another: pre-norm blocks with GELU, torch's initial
weights, one label shift, and a loss that is computed on logits in the weights' type.

Shape suffixes: B batch, T positions, V vocabulary, D hidden dimension.
"""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from flannel_pl.errors import UserError
from flannel_pl.models.language_model import (
    PARAM_DTYPES,
    LanguageModel,
    mistakes_of_sizes,
    mistakes_of_training,
)
from flannel_pl.models.projection import Publish, publish_streams


class TinyLM(LanguageModel):
    """A small pre-norm transformer whose input embedding is also its output projection.

    With the defaults it has 748,288 parameters, 640,000 of them the embedding. Weights are drawn on the CPU
    in float32 and cast: embedding and positions N(0, `init_scale`), all others as torch initialises an
    encoder layer. Labels are shifted once, in here; use it with `data.target_offset 1`.

    Args:
        vocab_size: V, number of tokens; must equal the tokenizer's.
        hidden_dim: D, width of the embedding; a multiple of `n_head`.
        n_layer: Number of transformer blocks.
        n_head: Number of attention heads.
        max_seq_len: T, positions per training window.
        ff_dim: Width of a block's feed-forward layer; null = 4 D.
        param_dtype: Type of the weights, and of the logits that the loss is computed on.
        init_scale: Standard deviation of the initial embedding and positions.
        init_seed: Seed of the initial weights; null takes torch's current seed (in an experiment: the run's).
        optimizer: Another optimizer, by class_path and init_args; null = torch's AdamW.
        learning_rate: Largest learning rate of the schedule.
        lr_schedule: As of `TiedGPT2`.
        warmup_steps: As of `TiedGPT2`.
        weight_decay: AdamW's decoupled decay; never applied to biases and layer norms.
        adam_beta1: Decay of Adam's first moment.
        adam_beta2: Decay of Adam's second moment.
        adam_epsilon: Added to the square root of Adam's second moment.

    Raises:
        UserError: If sizes do not fit together; all mistakes are named at once.

    Example:
        >>> sum(one.numel() for one in TinyLM().parameters())
        748288
    """

    EMBEDDING = "embedding.weight"
    """Name of the embedding among the module's parameters; shape (V, D)."""

    streams = ("log_probs", "probability_sums", "logits")
    """What `publish` is given of every forward pass, as of `TiedGPT2`."""

    publish: Publish | None = None
    """Set by a recorder that wants to see the streams."""

    def __init__(
        self,
        vocab_size: int = 10_000,
        hidden_dim: int = 64,
        n_layer: int = 2,
        n_head: int = 2,
        max_seq_len: int = 128,
        ff_dim: int | None = None,
        param_dtype: Literal["bfloat16", "float32"] = "bfloat16",
        init_scale: float = 0.02,
        init_seed: int | None = None,
        optimizer: OptimizerCallable | None = None,
        learning_rate: float | None = 3e-4,
        lr_schedule: Literal["linear", "constant", "cosine"] | LRSchedulerCallable = "constant",
        warmup_steps: int = 0,
        weight_decay: float | None = 0.1,
        adam_beta1: float | None = 0.9,
        adam_beta2: float | None = 0.999,
        adam_epsilon: float | None = 1e-8,
    ) -> None:
        super().__init__(optimizer=optimizer, lr_schedule=lr_schedule)
        self.save_hyperparameters(ignore=self.no_values)
        if mistakes := [*mistakes_of_sizes(self), *mistakes_of_training(self)]:
            raise UserError("; ".join(mistakes))
        torch.manual_seed(torch.initial_seed() if init_seed is None else init_seed)
        self.embedding = nn.Embedding(vocab_size, hidden_dim)
        self.positions = nn.Embedding(max_seq_len, hidden_dim)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=init_scale)
        # One after the other, so that each is drawn; torch's own stack would copy the first.
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden_dim,
                n_head,
                dim_feedforward=ff_dim or 4 * hidden_dim,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(n_layer)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.to(PARAM_DTYPES[param_dtype])

    @override
    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Returns the logits (B, T, V) of the tokens `input_ids_BT` (B, T), int64."""
        num_positions = input_ids_BT.shape[1]
        hidden_BTD = self.embedding(input_ids_BT) + self.positions.weight[:num_positions]
        mask_TT = nn.Transformer.generate_square_subsequent_mask(
            num_positions, device=hidden_BTD.device, dtype=hidden_BTD.dtype
        )
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD, src_mask=mask_TT, is_causal=True)
        logits_BTV: Tensor = self.norm(hidden_BTD) @ self.embedding.weight.T
        return logits_BTV

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Computes the loss of one batch.

        Args:
            batch: `input_ids` and `labels`, both (B, T) int64; position j is trained on label j + 1.
            batch_idx: Not used.

        Returns:
            `loss`, a scalar of the logits' type, and `logits` (V), of the first sequence's last position.
        """
        logits_BTV = self(batch["input_ids"])
        if self.publish is not None:
            publish_streams(logits_BTV, self.publish)
        loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        self.log("loss", loss.detach(), prog_bar=True)
        return {"loss": loss, "logits": logits_BTV[0, -1].detach()}
