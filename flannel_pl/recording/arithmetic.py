"""In which types a run computes: its weights', the optimizer's, and that of products under autocast.

`trainer.precision` says nothing of the weights unless it ends in true, and `model.param_dtype` nothing of
what is computed with them; what comes of both is said in one line, and decides in which types a run is
recorded.
"""

from dataclasses import dataclass

from flannel_pl.errors import UserError

_OTHER_WORDS = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}

AUTOCAST = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}
"""Precision -> the type of products under its autocast."""


def unified(precision: str | int | None) -> str:
    """Returns Lightning's own word for a precision, of which it knows several.

    Example:
        >>> unified(32), unified("bf16"), unified("bf16-true")
        ('32-true', 'bf16-mixed', 'bf16-true')
    """
    return _OTHER_WORDS.get(str(precision), str(precision))


@dataclass(frozen=True)
class Arithmetic:
    """In which types a run computes.

    Args:
        weights: Type of the weights, and so of their gradients.
        autocast: Type that products are computed in; None = that of the weights.
        state: Type of what the optimizer keeps of the weights; None = theirs.

    Example:
        >>> print(Arithmetic("bfloat16", "bfloat16"))
        weights and optimizer state bfloat16, autocast bfloat16
        >>> print(Arithmetic("bfloat16", None, "float32"))
        weights bfloat16, optimizer state float32, no autocast
        >>> Arithmetic("float32", None).own_dtypes["logits"]
        'float32'
    """

    weights: str
    autocast: str | None
    state: str | None = None

    @classmethod
    def of(cls, weights: str, asked: str | int | None) -> "Arithmetic":
        """Returns the arithmetic of a run.

        Args:
            weights: `model.param_dtype`.
            asked: `trainer.precision`.

        Raises:
            UserError: If it asks for float32 and for weights that are not.
        """
        precision = unified(asked)
        if asked is not None and precision == "32-true" and weights != "float32":
            raise UserError(
                f"trainer.precision {asked} computes in the type that the weights have, and "
                f"model.param_dtype is {weights}, so this would be bf16-true; for float32 throughout add "
                "--model.param_dtype float32, else choose bf16-mixed or bf16-true"
            )
        return cls(weights, AUTOCAST.get(precision))

    @property
    def own_dtypes(self) -> dict[str, str]:
        """Recorded tensor -> the type that it has in training; the loss is always float32."""
        of_weights = dict.fromkeys(("embeddings", "grads"), self.weights)
        of_state = dict.fromkeys(("momentum", "variance"), self.state or self.weights)
        return {**of_weights, **of_state, "logits": self.autocast or self.weights}

    def __str__(self) -> str:
        """Says it in one line."""
        autocast = f"autocast {self.autocast}" if self.autocast else "no autocast"
        if self.state in (None, self.weights):
            return f"weights and optimizer state {self.weights}, {autocast}"
        return f"weights {self.weights}, optimizer state {self.state}, {autocast}"
