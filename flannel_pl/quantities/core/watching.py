"""Live metrics of a training: whether they can be measured of its rows, and what measures them."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.metrics.row_metrics import find_metrics
from flannel_pl.quantities.core.config import RecorderConfig
from flannel_pl.quantities.core.tokens import TokenIds
from flannel_pl.quantities.core.training import Training
from flannel_pl.quantities.live import MEASURED, LiveMetrics, LiveValues
from flannel_pl.recording.formats.schema import holds
from flannel_pl.recording.writing.writer import RecordingWriter


def check_logged(config: RecorderConfig, log_every_n_steps: int | None) -> None:
    """Refuses live metrics that nobody would see.

    Args:
        config: What is asked for.
        log_every_n_steps: How often it is logged; None for the Trainer's default.

    Raises:
        UserError: Says what to change.
    """
    if config.live and log_every_n_steps == 0:
        raise UserError(
            "recorder.live is logged every trainer.log_every_n_steps steps, but that is 0, which is never; "
            "give another number, or leave recorder.live out"
        )


def check_measurable(config: RecorderConfig, shape: Sequence[int], *, own: str | None) -> None:
    """Refuses what would say something else of the recorded rows than of the weights.

    Args:
        config: What is asked for.
        shape: Of the first parameter.
        own: Its type; None if nobody knows.

    Raises:
        UserError: Says what to change.
    """
    if not config.live:
        return
    if config.parameter is None or len(shape) != 2:
        what = "there is none" if config.parameter is None else f"that is of shape {tuple(shape)}"
        raise UserError(
            f"recorder.live measures a recorder.parameter that has a vector for each token, but {what}; "
            "leave recorder.live out, or record another parameter"
        )
    metrics = find_metrics(config.live, option="recorder.live")
    of_bits = [name for name, metric in metrics.items() if metric.of_bits]
    stored = config.dtypes.get(MEASURED, own)
    if of_bits and own is not None and stored is not None and not holds(stored, own):
        raise UserError(
            f"recorder.live has {', '.join(of_bits)}, but {MEASURED} are {own} and recorder.dtypes has them "
            f"rounded to {stored}, which rests at other times; record them in {own}, or leave that metric out"
        )


class LiveFeed:
    """What of a training is measured while it goes on: each due row once, also if it is interrupted.

    Args:
        names: Which metrics; none measures nothing.
        run: Its number.
        note: Told if they fail.
    """

    def __init__(self, names: Sequence[str], run: int, note: Callable[..., object]) -> None:
        self._names, self._run, self._note = names, run, note
        self._metrics: LiveMetrics | None = None
        self._next_row: int | None = None

    def begin(
        self, training: Training, ids: TokenIds | None, *, num_tokens: int, first_row: int
    ) -> LiveMetrics | None:
        """Returns what is to see the rows; None where nothing is measured.

        Args:
            training: Which has the token sets.
            ids: The recorded tokens; None for all of them.
            num_tokens: Size of the vocabulary.
            first_row: The first that is going to be written; those before it are there.
        """
        if self._names:
            self._metrics = LiveMetrics(
                find_metrics(self._names, option="recorder.live"),
                live_sets(training.token_sets, ids, num_tokens),
                every_n_steps=training.log_every_n_steps,
                next_row=first_row if self._next_row is None else min(self._next_row, first_row),
            )
        return self._metrics

    def take(self, writer: RecordingWriter | None, *, all_rows: bool = False) -> Iterator[LiveValues]:
        """Yields what was measured and was not yielded yet.

        Args:
            writer: Which shows the rows; None as long as there is no file.
            all_rows: Whether to wait for all that there are so far. Otherwise what is yielded does not depend
                on how far the writer is by chance.

        Raises:
            RunError: If writing has failed.
        """
        if self._metrics is None or writer is None:
            return
        if all_rows:
            writer.settle()
        for seen in self._metrics.take(None if all_rows else writer.num_rows_seen):
            if seen.failure is None:
                yield seen
            else:
                self._tell(seen.step, seen.failure)

    def _tell(self, step: int, failure: BaseException) -> None:
        cause = str(failure) if isinstance(failure, UserError) else f"{type(failure).__name__}: {failure}"
        print(
            f"flannel-pl: live metrics end at step {step}: {cause}; training and recording go on without "
            "them",
            file=sys.stderr,
        )
        self._note("live_metrics_failed", run=self._run, step=step, cause=cause)

    def state_dict(self) -> dict[str, int]:
        """Returns which row is yielded next."""
        return {"live_row": self._metrics.next_row} if self._metrics else {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on with what an earlier attempt has not yielded; before `begin`."""
        self._next_row = state.get("live_row")


def live_sets(token_sets: Mapping[str, Array], ids: Array | None, num_tokens: int) -> dict[str, Array]:
    """Returns where in a row the tokens of each set are, (S,) int64; of sets of which some are recorded.

    Args:
        token_sets: Set -> token ids.
        ids: The recorded tokens; None for all of them.
        num_tokens: Size of the vocabulary.

    Returns:
        All tokens as the set `all` if there is no other.
    """
    recorded = np.arange(num_tokens) if ids is None else ids
    found = {name: np.flatnonzero(np.isin(recorded, tokens)) for name, tokens in token_sets.items()}
    return {name: where for name, where in found.items() if len(where)} or {"all": np.arange(len(recorded))}
