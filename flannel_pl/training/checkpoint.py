"""What a run goes on from: Lightning's checkpoints, each named after its step and the hash of its bytes.

The writer brings a checkpoint to the disk only after the rows up to its step, so one that is there
has its rows there. Two are kept: should the newest be damaged, the one before it takes its place.
"""

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
import xxhash
from lightning.pytorch import Trainer

from flannel_pl.errors import RunError, Unreachable, UserError
from flannel_pl.experiment import Run, RunPaths
from flannel_pl.recording.checking.parts import parts_of
from flannel_pl.recording.checking.verify import num_good_rows
from flannel_pl.recording.formats.files import open_file, read_header
from flannel_pl.recording.formats.lazy import LazyTensor
from flannel_pl.recording.formats.opening import is_there, unreachable
from flannel_pl.recording.formats.schema import RECORDED_TOKENS
from flannel_pl.recording.gathering.contents import other_config, run_contradictions
from flannel_pl.recording.sameness import decisive
from flannel_pl.recording.writing.disk import explained
from flannel_pl.recording.writing.held import check_held
from flannel_pl.small_files import open_regular

NUM_KEPT = 2


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
    config: Mapping[str, Any]
    """The run's config."""

    digests: Mapping[str, str]
    """Name of each data file -> the hash of its content."""


def identity_in_checkpoint(run: int, seed: int | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a checkpoint says of its run, with what of its config decides bits as JSON.

    Args:
        run: Its number.
        seed: Its seed.
        metadata: What its recording says besides these.
    """
    identity: dict[str, Any] = {"run": run, "seed": seed}
    if "config" in metadata:
        identity["config"] = json.dumps(decisive(metadata["config"]))
    return identity


def checkpoint_bytes(trainer: Trainer) -> bytes:
    """Returns the content of a Lightning checkpoint of this moment."""
    # Lightning saves to any fsspec path. This one is memory: the recording's writer brings it to the disk.
    path = f"/flannel-{os.getpid()}.ckpt"
    trainer.save_checkpoint(f"memory:/{path}", weights_only=False)
    memory = fsspec.filesystem("memory")
    data: bytes = memory.cat_file(path)
    memory.rm_file(path)
    return data


def checkpoint_digest(data: bytes) -> str:
    """Returns the xxh3-64 of a checkpoint's bytes, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(data)


def remove_checkpoints(paths: RunPaths, *, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints of a run.

    Raises:
        RunError: If the disk refuses.
    """
    check_held(paths.folder)
    for _, _, path in paths.checkpoints()[keep:]:
        with explained(path, need_bytes=0):
            path.unlink(missing_ok=True)


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
        wrong = run_contradictions(metadata, whose.run, config=whose.config, digests=whose.digests)
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
        wrong += other_config(metadata, whose.config, swept=whose.run.swept)
    # Where Lightning averages weights, it puts the average in the place of those that are trained.
    weights = content.get("current_model_state") or content.get("state_dict", {})
    # At the end of a training that ended early it has done so for good, and nothing is trained any more.
    weight = None if "ended" in told else weights.get(whose.config["recorder"]["parameter"])
    if not wrong and weight is not None and not is_row(weight, step, partial):
        wrong = [f"its weights are not those that {partial.name} has of step {step}"]
    _refuse(path, whose, wrong)


def is_row(weight_VD: torch.Tensor, step: int, partial: Path) -> bool:
    """Tells whether a parameter, (V, D), is what a recording has of a step; True if it has no row of that."""
    with open_file(partial) as file:
        prefix = parts_of(file.header)[0].prefix
        every_n_steps = file.header.flannel["every_n_steps"]
        if step % every_n_steps or f"{prefix}embeddings" not in file.header.tensors:
            return True
        row_VD = LazyTensor(file, f"{prefix}embeddings", framework="pt")[step // every_n_steps]
        if f"{prefix}{RECORDED_TOKENS}" in file.header.tensors:
            weight_VD = weight_VD[torch.from_numpy(file.read(f"{prefix}{RECORDED_TOKENS}"))]
    # By their bits: a weight that is not a number is equal to itself here.
    return torch.equal(weight_VD.to(row_VD.dtype).contiguous().view(torch.uint8), row_VD.view(torch.uint8))


def _refuse(path: Path, whose: RunIdentity, wrong: list[str]) -> None:
    if wrong:
        raise UserError(
            f"{path} does not belong to run {whose.run.index} (seed {whose.run.seed}): {'; '.join(wrong)}. "
            "It was brought from elsewhere: put it back where it belongs, then start again"
        )
