"""Which of its checkpoints a run goes on from: the newest that is whole, and whose rows are."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flannel_pl.adapters.lightning.checkpoint import checkpoint_digest
from flannel_pl.config import Config
from flannel_pl.errors import RunError, Unreachable, UserError
from flannel_pl.experiment import Run, RunPaths
from flannel_pl.quantities.core.hold import is_row
from flannel_pl.recording.belonging import other_config, run_contradictions
from flannel_pl.recording.checking.verify import num_good_rows
from flannel_pl.recording.formats.files import read_header
from flannel_pl.recording.formats.opening import is_there, unreachable
from flannel_pl.small_files import open_regular


@dataclass(frozen=True)
class ResumePoint:
    """Where an interrupted run goes on."""

    checkpoint: Path
    step: int
    metadata: dict[str, Any]
    """What the unfinished recording says of itself."""


@dataclass(frozen=True)
class RunIdentity:
    """Which run goes on; what it goes on from has to be of the same."""

    run: Run
    config: Config
    """The run's config."""

    digests: Mapping[str, str]
    """Name of each data file -> the hash of its content."""


def find_resume_point(
    paths: RunPaths,
    *,
    every_n_steps: int,
    note: Callable[[str], object],
    whose: RunIdentity | None = None,
) -> ResumePoint | None:
    """Finds the newest checkpoint that is whole and whose rows are whole.

    Args:
        paths: The run's files.
        every_n_steps: Steps from row to row.
        note: Called with a sentence for everything that is damaged.
        whose: The run that goes on, if its files are to be compared with it.

    Returns:
        None if the run has to start from its beginning.

    Raises:
        UserError: If the unfinished recording or a checkpoint is that of another run or config.
    """
    if whose is not None:
        _refuse_other_partial(paths.partial, whose)
    checkpoints = paths.checkpoints()
    if not checkpoints or not is_there(paths.partial):
        return None
    num_good = num_good_rows(paths.partial)
    for step, digest, path in checkpoints:
        try:
            with open_regular(path) as file:
                data = file.read()
        except OSError as error:
            raise unreachable(path, error) from error
        if checkpoint_digest(data) != digest:
            note(f"{path} is damaged; trying the checkpoint before it")
        elif step // every_n_steps >= num_good:
            note(
                f"{paths.partial} has {num_good} good rows, too few for {path.name}; trying the one before it"
            )
        else:
            if whose is not None:
                _refuse_other_checkpoint(path, data, step, paths.partial, whose)
            return ResumePoint(path, step, read_header(paths.partial).flannel)
    note(f"no checkpoint in {paths.folder} can be used, so the run starts from its beginning")
    return None


def _refuse_other_partial(path: Path, whose: RunIdentity) -> None:
    """Refuses to go on with an unfinished recording that is another's; a damaged one is nobody's."""
    try:
        metadata = read_header(path).flannel if is_there(path) else None
    except Unreachable:
        raise
    except RunError:
        return
    if metadata:
        wrong = run_contradictions(metadata, whose.run, config=whose.config.content, digests=whose.digests)
        _refuse(path, whose, list(wrong))


def _refuse_other_checkpoint(path: Path, data: bytes, step: int, partial: Path, whose: RunIdentity) -> None:
    """Refuses a checkpoint that names another run or config, or whose weights are not those of its row."""
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # Lightning will say what is wrong with it
        return
    told = content.get("flannel_pl") or {}
    expected = {"run": whose.run.index, "seed": whose.run.seed}
    wrong = [
        f"its {name} is {told[name]!r}, expected {value!r}"
        for name, value in expected.items()
        if told.get(name) not in (None, value)
    ]
    if "config" in told:
        metadata = {"config": json.loads(told["config"])}
        wrong += other_config(metadata, whose.config.content, swept=whose.run.swept)
    # Where Lightning averages weights, it puts the average in the place of those that are trained.
    weights = content.get("current_model_state") or content.get("state_dict", {})
    # At the end of a training that ended early it has done so for good, and nothing is trained any more.
    weight = None if "ended" in told else weights.get(whose.config.recorder.parameter)
    if not wrong and weight is not None and not is_row(weight, step, partial):
        wrong = [f"its weights are not those that {partial.name} has of step {step}"]
    _refuse(path, whose, wrong)


def _refuse(path: Path, whose: RunIdentity, wrong: list[str]) -> None:
    if wrong:
        raise UserError(
            f"{path} does not belong to run {whose.run.index} (seed {whose.run.seed}): {'; '.join(wrong)}. "
            "It was brought from elsewhere: put it back where it belongs, then start again"
        )
