"""Are two recordings equal to the bit, and if not, where do they part and how far do they drift?

Shape suffixes: R rows that both runs have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flannel_pl.analysis.comparing import origins
from flannel_pl.analysis.comparing.pairing import Pairing, pair_rows, pair_runs
from flannel_pl.analysis.comparing.tensor_compare import TensorComparison, compare_tensor
from flannel_pl.analysis.missing import missing_runs
from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.recording.reader import Recording, open_recording


@dataclass(frozen=True)
class RunComparison:
    """What a run of A and a run of B have in common."""

    runs: tuple[int, int]
    """Their numbers in A and in B."""

    seeds: tuple[int | None, int | None]
    """None where a recording does not say."""

    steps_R: Array
    """Steps of the rows that were compared, int64."""

    steps_only: tuple[Array, Array]
    """Steps that only A has, that only B has."""

    num_tokens: int
    """Tokens that were compared; 0 if either recorded no tensor of tokens."""

    tokens_only: tuple[int, int]
    """How many tokens only A has, and only B; (0, 0) if either recorded no tensor of tokens."""

    names_only: tuple[tuple[str, ...], tuple[str, ...]]
    """Tensors that only A has, that only B has."""

    not_compared: dict[str, str]
    """Tensors that both have and of which no elements belong together -> why."""

    tensors: tuple[TensorComparison, ...]
    """Those that were compared, in the order in which a step computes them, see `pairing.ORDER`."""

    origins: tuple[str, ...]
    """What differs in seed, config, data, software and device, see `origins.other_origins`."""

    @property
    def equal_in_common(self) -> bool:
        """Whether all that both have is equal to the bit."""
        return all(tensor.equal for tensor in self.tensors)

    @property
    def equal(self) -> bool:
        """Whether both have the same tensors, rows and tokens, equal to the bit."""
        only = (*self.names_only, *self.steps_only)
        return self.equal_in_common and not any(self.tokens_only) and not any(len(one) for one in only)

    @property
    def first(self) -> TensorComparison | None:
        """The tensor that differs first: in the earliest row, and there the nearest to the cause."""
        # min keeps the first of several in the same row, and `tensors` is in the order of causes.
        differing = [(tensor.first.row_a, tensor) for tensor in self.tensors if tensor.first is not None]
        return min(differing, key=lambda pair: pair[0])[1] if differing else None


@dataclass(frozen=True)
class Comparison:
    """What two recordings have in common; made by `compare`."""

    paths: tuple[Path, Path]
    runs: tuple[RunComparison, ...]

    runs_only: tuple[tuple[int, ...], tuple[int, ...]]
    """Runs that only A has, that only B has. Empty if pairs were asked for or either is of one run: nobody
    expects the others there."""

    missing: tuple[tuple[int, ...], tuple[int, ...]]
    """Runs of A's experiment that A lacks, and of B's, see `missing_runs`. Empty if pairs were asked for."""

    shared: tuple[str, ...]
    """Scalars and masks of the experiment that both have and that differ. Not looked at if pairs were asked
    for or either is of one run."""

    @property
    def equal_in_common(self) -> bool:
        """Whether all that both have is equal to the bit."""
        lengths = {"n_runs", "n_steps"}  # which say how far each goes, not what it holds there
        return all(run.equal_in_common for run in self.runs) and lengths.issuperset(self.shared)

    @property
    def equal(self) -> bool:
        """Whether neither has a run, row, token, tensor or bit that the other has not: exit code 0."""
        return all(run.equal for run in self.runs) and not self.shared and not any(self.runs_only)


def compare(
    a: str | Path,
    b: str | Path,
    *,
    runs: Sequence[tuple[int, int]] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Comparison:
    """Compares two recordings row by row, to the bit.

    Rows are matched by their steps and tokens by their ids, so recordings of another length, interval or
    token subset are compared in what both have. Memory does not grow with the size of the recordings.

    Args:
        a: Anything `open_recording` takes: a shard, a gathered file, an index, a folder.
        b: Likewise.
        runs: Pairs of a run of A and a run of B; None = every run that both have, or the one of each.
        progress: Called with (bytes done, bytes in all), of both recordings.

    Raises:
        UserError: If there is no recording, or no such run, or the runs have no step or tensor in common.
        RunError: If a file cannot be read or is damaged.

    Example:
        >>> result = compare("runs/flannel1", "runs/flannel3", runs=[(0, 0)])
        >>> result.equal, result.runs[0].first
        (True, None)
    """
    with open_recording(a) as in_a, open_recording(b) as in_b:
        missing = missing_runs(in_a), missing_runs(in_b)
        # What is there so far of an experiment of several runs is not a recording of one.
        single = [len(x) == 1 and not lacks for x, lacks in zip((in_a, in_b), missing, strict=True)]
        chosen = pair_runs(in_a, in_b, runs, single=all(single))
        pairings = [pair_rows(in_a.run(first), in_b.run(second)) for first, second in chosen]
        total, done = sum(pairing.num_bytes for pairing in pairings), 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if progress is not None:
                progress(done, total)

        compared = [
            _compare_run(pairing, origins.other_origins(in_a, pairing.a, in_b, pairing.b), advance)
            for pairing in pairings
        ]
        whole = runs is None and not any(single)
        only = [tuple(sorted(set(x.runs) - set(y.runs))) for x, y in ((in_a, in_b), (in_b, in_a))]
        return Comparison(
            paths=(in_a.path, in_b.path),
            runs=tuple(compared),
            runs_only=(only[0], only[1]) if whole else ((), ()),
            missing=missing if runs is None else ((), ()),
            shared=_shared(in_a, in_b) if whole else (),
        )


def _compare_run(
    pairing: Pairing, origins: tuple[str, ...], advance: Callable[[int], object]
) -> RunComparison:
    a, b = pairing.a, pairing.b
    tensors = (
        compare_tensor(name, a.tensor(name), b.tensor(name), pairing.alignment(name), advance=advance)
        for name in pairing.names
    )
    return RunComparison(
        runs=(a.index, b.index),
        seeds=(a.seed, b.seed),
        steps_R=pairing.rows.steps_R,
        steps_only=pairing.steps_only,
        num_tokens=len(pairing.tokens_T),
        tokens_only=pairing.tokens_only,
        names_only=pairing.names_only,
        not_compared=pairing.not_compared,
        tensors=tuple(tensors),
        origins=origins,
    )


def _shared(a: Recording, b: Recording) -> tuple[str, ...]:
    """Names the experiment's scalars and masks that both have and that differ."""
    x, y = ({**recording.scalars, **_masks(recording)} for recording in (a, b))
    return tuple(sorted(key for key in x.keys() & y.keys() if not _same(x[key], y[key])))


def _masks(recording: Recording) -> dict[str, Array]:
    """Returns the masks as they are: damage to them is a difference, too."""
    if recording.stored_masks:
        return recording.stored_masks
    try:
        return recording.masks
    except UserError:  # it has none
        return {}


def _same(a: Array | float, b: Array | float) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
