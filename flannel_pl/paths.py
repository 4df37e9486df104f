"""How every file is called: those of an experiment and its runs, and what stands beside a file for a while.

Nothing else in the package knows a file name, or what an ending means.
"""

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from flannel_pl.small_files import read_small
from flannel_pl.texts import from_file

MAX_NAME_BYTES = 200
"""File systems allow 255, and the files of an experiment have an ending behind its name."""

MASKS_NAME = "live_dead_tokens.safetensors"
CONFIG_NAME = "config.yaml"

_RUN, _FILE, _PARTIAL = "run_", ".safetensors", ".partial"
_INDEX, _EXTRAS = ".safetensors.index.json", ".extras.safetensors"


@dataclass(frozen=True)
class RunPaths:
    """Every file of one run, below `folder`."""

    folder: Path

    @property
    def config(self) -> Path:
        """Complete config: `flannel-pl fit --config run_i/config.yaml` repeats this run alone."""
        return self.folder / CONFIG_NAME

    @property
    def recording(self) -> Path:
        """The shard: complete and checked, or not there."""
        return self.folder / "recording.safetensors"

    @property
    def partial(self) -> Path:
        """The shard while it grows: preallocated, rows filled in as they come."""
        return self.folder / "recording.partial"

    @property
    def journal(self) -> Path:
        """Progress of the run: rows committed so far, state, device."""
        return self.folder / "journal"

    def checkpoint(self, step: int, digest: str) -> Path:
        """What training goes on from after `step`; `digest` is the xxh3-64 of its bytes, 16 hex digits."""
        return self.folder / f"checkpoint-{step}-{digest}.ckpt"

    def checkpoints(self) -> list[tuple[int, str, Path]]:
        """Returns (step, digest, path) of every checkpoint there is, the newest first."""
        found = []
        for path in self.folder.glob("checkpoint-*.ckpt"):
            if match := re.fullmatch(r"checkpoint-(\d+)-([0-9a-f]{16})\.ckpt", path.name):
                with contextlib.suppress(FileNotFoundError):
                    # A run that ends early makes another one of a step that may have one already.
                    found.append((int(match[1]), path.lstat().st_mtime_ns, match[2], path))
        return [(step, digest, path) for step, _, digest, path in sorted(found, reverse=True)]

    def half_written(self) -> list[Path]:
        """Returns what its config and its checkpoints are called while they are written, there or not."""
        return [partial_of(self.config), *self.folder.glob("checkpoint-*.ckpt.partial")]

    @property
    def number(self) -> int:
        """Number of the run, by the name of its folder."""
        return int(self.folder.name.removeprefix(_RUN))

    @property
    def metrics(self) -> Path:
        """What Lightning's logger writes there, if it is the one that we give it."""
        return self.folder / "metrics.csv"

    @property
    def kept_metrics(self) -> Path:
        """What an earlier attempt has logged, while another begins."""
        return self.folder / "metrics.csv.kept"

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run."""
        return self.folder / "lock"

    @property
    def log(self) -> Path:
        """What the run's own process printed."""
        return self.folder / "log.txt"


@dataclass(frozen=True)
class ExperimentPaths:
    """Every file of one experiment, below `folder`.

    The gathered file is named after the experiment, also when its folder has been renamed.
    """

    folder: Path
    name: str

    @classmethod
    def find(cls, folder: Path) -> "ExperimentPaths":
        """Returns the paths of the experiment in `folder`.

        Its name is in its record; without a record, or with one that gives no plain name, it is the folder's.
        """
        record = cls(folder, folder.name).record
        try:
            name = from_file(json.loads(read_small(record))["name"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return cls(folder, folder.name)
        return cls(folder, name if is_plain_name(name) else folder.name)

    @classmethod
    def of_index(cls, index: Path) -> "ExperimentPaths":
        """Returns the paths of the experiment that an index is of."""
        return cls(index.parent, index.name.removesuffix(_INDEX))

    @property
    def record(self) -> Path:
        """`experiment.json`: what was asked, resolved, with provenance."""
        return self.folder / "experiment.json"

    @property
    def masks(self) -> Path:
        """Copy of the live/dead masks the experiment was trained with, so that the folder explains itself."""
        return self.folder / MASKS_NAME

    @property
    def gathered(self) -> Path:
        """The experiment's one recording."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def growing(self) -> Path:
        """The gathered file until every run is in it."""
        return partial_of(self.gathered)

    @property
    def growing_notes(self) -> Path:
        """What is known of the growing file: where everything lies, and which runs are safe in it."""
        return self.folder / f"{self.name}.safetensors.gathered.json"

    @property
    def growing_moved(self) -> Path:
        """The growing file while it is made anew because a run did not fit into its plan."""
        return self.folder / f"{self.name}.safetensors.moved"

    @property
    def index(self) -> Path:
        """The experiment's recording as an index over its shards."""
        return self.folder / f"{self.name}{_INDEX}"

    @property
    def index_extras(self) -> Path:
        """The scalars and masks that an index refers to besides the shards."""
        return self.folder / f"{self.name}{_EXTRAS}"

    @property
    def lock(self) -> Path:
        """Held by the launcher of the experiment."""
        return self.folder / "lock"

    @property
    def events(self) -> Path:
        """What happened to which run when: one JSON object per line."""
        return self.folder / "events.jsonl"

    @property
    def jobs(self) -> Path:
        """The jobs that the experiment was last handed over as, where they outlive us."""
        return self.folder / "jobs.json"

    @property
    def older_jobs(self) -> Path:
        """What an earlier version wrote in place of `jobs`."""
        return self.folder / "slurm.json"

    @property
    def noted_jobs(self) -> Path:
        """Whichever of them counts."""
        return self.jobs if self.jobs.exists() or not self.older_jobs.exists() else self.older_jobs

    @property
    def gather_log(self) -> Path:
        """What the job that gathers printed."""
        return self.folder / "gather.log"

    def run(self, index: int) -> RunPaths:
        """Returns the paths of run `index`, counted from 0."""
        return RunPaths(self.folder / run_folder(index))


def is_plain_name(name: object) -> bool:
    """Tells whether an experiment can be called so: whether its folder and its files can."""
    if not isinstance(name, str) or name in ("", ".", "..", MASKS_NAME.removesuffix(_FILE), "lock"):
        return False
    try:
        num_bytes = len(os.fsencode(name))
    except UnicodeEncodeError:  # half of a character
        return False
    return num_bytes <= MAX_NAME_BYTES and "/" not in name and "\0" not in name


def run_folder(index: object) -> str:
    """Returns the name of a run's folder; `index` may be what somebody else puts its number in place of."""
    return f"{_RUN}{index}"


def run_folders(folder: Path) -> list[RunPaths]:
    """Returns the files of all runs that have a folder there, whatever else is in it."""
    return [RunPaths(path) for path in sorted(folder.glob(f"{_RUN}*"))]


def is_run_folder(path: Path) -> bool:
    """Tells whether a folder is called as one of a run."""
    return re.fullmatch(rf"{_RUN}\d+", path.name) is not None


def is_partial(path: Path) -> bool:
    """Tells whether a file is called as one that is still being written."""
    return path.suffix == _PARTIAL


def is_growing(path: Path) -> bool:
    """Tells whether a file is called as a gathered one that waits for runs."""
    return path.name.endswith(f"{_FILE}{_PARTIAL}")


def is_finished_file(path: Path) -> bool:
    """Tells whether a file is called as one that is complete."""
    return path.suffix == _FILE


def is_index(path: Path) -> bool:
    """Tells whether a file is called as an index over others."""
    return path.name.endswith(".index.json")


def is_extras(path: Path) -> bool:
    """Tells whether a file is called as what belongs to no run, beside an index."""
    return path.name.endswith(_EXTRAS)


def bare_name(path: Path) -> str:
    """Returns the name of a recording without what says that it is one."""
    return path.name.removesuffix(".index.json").removesuffix(_FILE)


def partial_of(final: Path) -> Path:
    """Returns the name that a file has until it is complete."""
    return final.with_name(f"{final.name}{_PARTIAL}")


def final_of(path: Path) -> Path:
    """Returns the name that a file gets once it is complete; its own, if it is."""
    return path.with_name(path.name.removesuffix(_PARTIAL))


def header_copy_of(partial: Path) -> Path:
    """Returns where the new header of an unfinished file is kept while it is written over the old one."""
    return partial.with_suffix(".header")


def roomier_of(partial: Path) -> Path:
    """Returns where an unfinished file is made anew with more space for its header."""
    return partial.with_suffix(".roomier")


def beside_lock(lock: Path, middle: str) -> Path:
    """Returns the name of a file that stands beside a lock while it is taken or given back."""
    return lock.with_name(f"{lock.name}.{middle}{_PARTIAL}")


def all_beside_lock(lock: Path) -> list[tuple[str, Path]]:
    """Returns all of these that there are, each with its `middle`."""
    found = sorted(lock.parent.glob(f"{lock.name}.*{_PARTIAL}"))
    return [(path.name.removeprefix(f"{lock.name}.").removesuffix(_PARTIAL), path) for path in found]


def cache_home() -> Path:
    """Returns where the cache is: `$FLANNEL_PL_CACHE`, `$XDG_CACHE_HOME/flannel-pl` or `~/.cache/flannel-pl`.

    Whether it is there is not looked at.
    """
    own, shared = os.environ.get("FLANNEL_PL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(shared or "~/.cache") / "flannel-pl"
    return folder.expanduser().absolute()
