"""Opens recordings: a shard, a gathered file, an index, a folder, or the notebook's own file.

Whatever it is, inside it becomes one table: `run_{i}_{name}` and the experiment-wide keys -> the file that
has them.
"""

import copy
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError, UserError
from flannel_pl.paths import ExperimentPaths, RunPaths
from flannel_pl.recording.belonging import index_contradictions
from flannel_pl.recording.formats.columns import columns_of, run_prefix
from flannel_pl.recording.formats.files import TensorFile, open_file
from flannel_pl.recording.formats.first_rows import open_first_rows
from flannel_pl.recording.formats.lazy import Framework
from flannel_pl.recording.formats.lazy import LazyTensor as LazyTensor  # of what it opens
from flannel_pl.recording.formats.schema import ALL_NAMES, MASK_NAMES
from flannel_pl.recording.html import table_of
from flannel_pl.recording.locating import files_of
from flannel_pl.recording.masks import mask_problems, read_masks
from flannel_pl.recording.run_recording import RunRecording as RunRecording  # of what it opens
from flannel_pl.recording.vocabulary import vocabulary_of
from flannel_pl.recording.writing.journal import Journal

_RUN_KEY = re.compile(r"run_(0|[1-9][0-9]{0,8})_(.+)")


AskedFramework = Literal["np", "numpy", "pt", "torch"]

FRAMEWORKS: dict[str, Framework] = {"np": "np", "numpy": "np", "pt": "pt", "torch": "pt"}
"""What `open_recording` may be asked for -> what it is called in here."""


def open_recording(
    path: str | Path, *, framework: AskedFramework = "np", unfinished: bool = False
) -> "Recording":
    """Opens a recording for reading; tensors are read when they are indexed.

    Args:
        path: A shard, a gathered file, an index (`.safetensors.index.json`), a run's folder, or an
            experiment's folder: its gathered file if it is there, else its index, else the shards of the
            runs that are finished.
        framework: What indexing returns: "torch" (or "pt") tensors, or "numpy" (or "np") arrays, whose
            bfloat16 is `ml_dtypes.bfloat16`, which `torch.from_numpy` does not take.
        unfinished: Whether a run may still be trained, or have broken off: then its folder opens with the
            rows that are safe so far. Open it again for later ones.

    Raises:
        UserError: If there is no recording, it is not finished, or the framework is another.
        RunError: If a file cannot be read or is damaged.

    Example:
        >>> with open_recording("runs/flannel3") as rec:
        ...     W = rec.run(1).embeddings[10:20, rec.masks["dead_indices"]]  # (10, n_dead, D)
        >>> W.shape[0], W.dtype
        (10, dtype(bfloat16))
    """
    if framework not in FRAMEWORKS:
        raise UserError(
            f"framework is {framework!r}, expected 'torch' (or 'pt': tensors) or 'numpy' (or 'np': arrays)"
        )
    path = Path(path)
    run = RunPaths(path)
    if unfinished and not run.recording.exists() and run.partial.exists():
        journal = Journal(run.journal).read()
        return open_unfinished(
            run.partial,
            num_rows=0 if journal is None else journal.rows_committed,
            framework=FRAMEWORKS[framework],
        )
    files = [(open_file(file), keys) for file, keys in files_of(path)]
    return _recording_of(path, files, FRAMEWORKS[framework])


def open_unfinished(partial: Path, *, num_rows: int, framework: Framework = "np") -> "Recording":
    """Opens the unfinished file of a run.

    Args:
        partial: The file.
        num_rows: How many rows are whole.
        framework: See `open_recording`.

    Raises:
        UserError: If no row is whole yet.
        RunError: If it cannot be read or is damaged.
    """
    if num_rows == 0:
        raise UserError(f"{partial} has no row that is safe yet; open it a moment later")
    return _recording_of(partial.parent, [(open_first_rows(partial, num_rows), None)], framework)


def _recording_of(
    path: Path, files: Iterable[tuple[TensorFile, Collection[str] | None]], framework: Framework
) -> "Recording":
    table: dict[str, tuple[TensorFile, str]] = {}
    for file, keys in files:
        for key in file.header.tensors if keys is None else keys:
            if key not in file.header.tensors:
                raise RunError(f"{path} expects {key} in {file.path}, which lacks it. Gather again.")
            name = run_prefix(file.header.flannel.get("run", 0)) + key if _is_of_run(file, key) else key
            if _RUN_KEY.fullmatch(name) and not file.header.tensors[key].shape:
                raise RunError(f"{key} in {file.path} has no rows. Bring that file back from a copy.")
            if name in table:
                raise RunError(
                    f"{table[name][0].path} and {file.path} both hold {name}. Open the one you mean."
                )
            table[name] = (file, key)
    _refuse_others([file for file, _ in table.values()])
    return Recording(path, table, framework=framework)


class Recording:
    """The recording of one or several runs; made by `open_recording`. Close it, or use it in a `with` block.

    Attributes:
        path: What was opened.
        runs: Numbers of the runs in it, ascending.
        seeds: Their seeds, in the same order; None where the file does not say.
        metadata: The parsed metadata: `schema`, `config`, `provenance`, `runs`, ... Empty for the
            notebook's own files.
        tensors: Every key, with `run_{i}_` where it belongs to a run, and its dtype and shape.
        files: The safetensors files it is made of.
        num_bytes: Their size, without what was reserved for rows that never came.
        scalars: Experiment-wide numbers, e.g. `learning_rate`; a shard has none.
    """

    def __init__(self, path: Path, table: dict[str, tuple[TensorFile, str]], *, framework: Framework) -> None:
        self.path = path
        self._folder = (path if path.is_dir() else path.parent).absolute()
        self._files = list(dict.fromkeys(file for file, _ in table.values()))
        self.files = tuple(file.path for file in self._files)
        self.num_bytes = sum(file.header.used_bytes for file in self._files)
        self.metadata = _metadata(self._files)
        self.tensors = {key: file.header.tensors[inner] for key, (file, inner) in table.items()}
        small = {key: file.read(inner) for key, (file, inner) in table.items() if _is_small(key, file, inner)}
        self.scalars: dict[str, int | float] = {key: x.item() for key, x in small.items() if x.ndim == 0}
        self._masks_are_checked = False
        self._masks: dict[str, Array] = {key: small[key] for key in MASK_NAMES if key in small}
        runs: dict[int, dict[str, LazyTensor]] = {}
        for key, (file, inner) in table.items():
            match = _RUN_KEY.fullmatch(key)
            if match:
                tensor = LazyTensor(file, inner, framework=framework)
                runs.setdefault(int(match[1]), {})[match[2]] = tensor
        self._runs = {index: self._open_run(index, runs[index]) for index in sorted(runs)}
        self.runs = tuple(self._runs)
        self.seeds = tuple(run.seed for run in self._runs.values())

    @property
    def masks(self) -> dict[str, Array]:
        """The five tensors of the masks file as numpy arrays, e.g. `dead_indices`.

        A single run has none of its own: they are taken from the experiment's folder around it.

        Raises:
            UserError: If they are not there.
            RunError: If they are damaged, or not those that the runs were trained with.
        """
        source = self.path
        if not self._masks:
            # By the file system's "..", which is right for symlinks too.
            beside = ExperimentPaths.find(self._folder / "..").masks
            if "num_rows" in self.metadata and "config" not in self.metadata:
                raise UserError(
                    f"{self.path} has no masks: flannel-pl fit makes them of its text, and this was recorded "
                    "from Python. Which tokens are meant can only be said by their numbers."
                )
            data = (self.metadata.get("config") or {}).get("data") or {}
            if "class_path" in data:
                raise UserError(
                    f"{self.path} has no masks: flannel-pl fit makes them of its text, and this was trained "
                    f"on {data['class_path']}. Which tokens are meant can only be said by their numbers."
                )
            if self.metadata.get("run") is None or not beside.exists():
                raise UserError(
                    f"{self.path} has no masks: they are in the experiment's gathered file and in its "
                    f"{beside.name}. Open the experiment's folder, or this run inside it."
                )
            self._masks, source = read_masks(beside), beside
        if not self._masks_are_checked:
            self._check_masks(source)
        return self._masks

    @property
    def vocabulary(self) -> dict[str, int]:
        """Text of each token -> its row in the embedding, by the tokenizer that this was recorded with.

        Empty where that is not known, or its file is not here any more.
        """
        return vocabulary_of(self.metadata)

    @property
    def stored_masks(self) -> dict[str, Array]:
        """The masks that are in these files, right or not; a single run has none."""
        return self._masks

    def _check_masks(self, path: Path) -> None:
        """Refuses masks that are not those this was recorded with, as far as it says."""
        if len(self._masks) == len(MASK_NAMES):
            runs: list[dict[str, Any]] = self.metadata.get("runs") or [{}]
            provenance = self.metadata.get("provenance") or runs[0].get("provenance") or {}
            for problem in mask_problems(self._masks, (provenance.get("data") or {}).get("masks")):
                raise RunError(
                    f"the masks in {path} are damaged, or of another experiment: {problem}. Bring that file "
                    "back from where it came from."
                )
        self._masks_are_checked = True

    def run(self, index: int) -> RunRecording:
        """Returns run `index`.

        Raises:
            IndexError: If it is not in this recording.
        """
        if index not in self._runs:
            there = ", ".join(map(str, self.runs)) or "none"
            raise IndexError(f"{self.path} has no run {index}; it has {there}")
        return self._runs[index]

    def __len__(self) -> int:
        """Returns the number of runs."""
        return len(self._runs)

    def __iter__(self) -> Iterator[RunRecording]:
        """Yields the runs in the order of their numbers."""
        return iter(self._runs.values())

    def __repr__(self) -> str:
        """Names path and runs."""
        seeds = ", ".join(map(str, self.seeds))
        return f"Recording({self.path}: {len(self)} runs, seeds {seeds})"

    def _repr_html_(self) -> str:
        rows = [
            (str(run.index), str(run.seed), str(run.swept or ""), str(run.num_rows), ", ".join(run.names))
            for run in self
        ]
        return table_of(f"Recording {self.path}", ("run", "seed", "swept", "rows", "tensors"), rows)

    def close(self) -> None:
        """Closes every file; tensors cannot be read any more."""
        for file in self._files:
            file.close()

    def __enter__(self) -> "Recording":
        """Returns the recording; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the recording."""
        self.close()

    def __copy__(self) -> "Recording":
        """Returns a copy with files of its own, like every other copy: closing one leaves the other open."""
        return copy.deepcopy(self)

    def _open_run(self, index: int, tensors: dict[str, LazyTensor]) -> RunRecording:
        entries = {entry["index"]: entry for entry in self.metadata.get("runs", [])}
        metadata = entries.get(index, self.metadata if self.metadata.get("run") == index else {})
        seed = metadata.get("seed")
        base_seed = self.scalars.get("base_seed")
        if seed is None and isinstance(base_seed, int):  # the notebook counts its seeds up from the first
            seed = base_seed + index
        specs = {name: self.tensors[run_prefix(index) + name] for name in tensors}
        columns = columns_of(self.metadata, metadata, specs)
        return RunRecording(index, tensors, seed=seed, metadata=metadata, columns=columns)


def _refuse_others(files: list[TensorFile]) -> None:
    """Refuses the file of a run that is not the one which an index was made for."""
    for extras in [file for file in files if "runs" in file.header.flannel][:1]:
        for file in [file for file in dict.fromkeys(files) if file is not extras]:
            if wrong := list(index_contradictions(file.header.flannel, extras.header.flannel)):
                raise RunError(
                    f"{file.path} is not the recording that its index was made for: {'; '.join(wrong)}. "
                    "Bring that one back, or gather again with --mode index."
                )


def _metadata(files: list[TensorFile]) -> dict[str, Any]:
    """Returns the experiment's metadata: of the one file that has them, or put together from shards."""
    found = [file.header.flannel for file in files]
    whole = [metadata for metadata in found if "runs" in metadata or len(files) == 1]
    if whole:
        return whole[0]
    shards = [metadata for metadata in found if "run" in metadata]
    return {"runs": [{"index": metadata["run"], **metadata} for metadata in shards]}


def _is_of_run(file: TensorFile, key: str) -> bool:
    """Tells whether a key that has no run_3_ before it belongs to the one run of its file all the same."""
    names = (*ALL_NAMES, *file.header.flannel.get("checksum_columns", ()))
    return key in names


def _is_small(key: str, file: TensorFile, inner: str) -> bool:
    return key in MASK_NAMES or (file.header.tensors[inner].shape == () and not _RUN_KEY.fullmatch(key))
