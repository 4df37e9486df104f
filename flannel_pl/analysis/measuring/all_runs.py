"""Measures all runs of an experiment, with what was measured before."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from flannel_pl.analysis.measuring import cache
from flannel_pl.analysis.measuring.cloud import MAX_CLOUDS, cloud_bytes, measure_cloud
from flannel_pl.analysis.measuring.divergence import Divergence, joined, measure_divergence
from flannel_pl.analysis.measuring.one_run import Advance, measure_run, measured_bytes, why_no_tokens
from flannel_pl.analysis.measuring.results import Cloud, Measures, RunMeasures
from flannel_pl.analysis.measuring.token_sets import token_sets
from flannel_pl.errors import RunError, UserError
from flannel_pl.metrics.row_metrics import RowMetric
from flannel_pl.paths import bare_name, run_folder
from flannel_pl.recording.formats.schema import ALL_NAMES, RECORDED_TOKENS
from flannel_pl.recording.reader import Recording, RunRecording
from flannel_pl.recording.writing.disk import make_folder


def measure_experiment(
    recording: Recording,
    *,
    own: Mapping[str, RowMetric] = MappingProxyType({}),
    cache_folder: Path | None = None,
    expect: Callable[[int], object] | None = None,
    advance: Advance | None = None,
) -> Measures:
    """Measures every run of a recording, and how far the runs are from each other.

    Args:
        recording: An open recording.
        own: Name -> somebody's own metric, measured besides.
        cache_folder: Where what was measured is kept, and not measured again; None = nowhere. With somebody's
            own metrics, of which nobody knows what they depend on, only distances between runs are.
        expect: Told once how many recorded bytes are going to be read.
        advance: Called with the bytes of every stretch of rows that is done.

    Returns:
        Its measures. Distances between runs are left out, with the reason, where there are none.

    Raises:
        RunError: If a file cannot be read, or the cache not written.

    Example:
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     measures = measure_experiment(recording)
        >>> measures.title, len(measures.runs), measures.pairs["dead"].pairs
        ('quickstart', 2, ((0, 1),))
    """
    advance = advance or (lambda num_bytes: None)
    _check_shapes(recording)
    kept = recording.runs if cache_folder else ()
    marks = {index: cache.fingerprint(recording, index) for index in kept}
    runs_folder = None if own else cache_folder
    found = _kept_runs(recording, marks, runs_folder)
    pairs = cache.load_divergence(cache_folder / "pairs.npz", marks.values()) if cache_folder else None
    clouds = _kept_clouds(recording, marks, cache_folder)
    alike = _alike(recording)
    if expect is not None:
        again = [index for index, measures in found.items() if measures is None]
        expect(_num_bytes(recording, again, alike if pairs is None else [], clouds))
    if cache_folder is not None:
        make_folder(cache_folder)
    runs = []
    for index, measures in found.items():
        if measures is None:
            measures = measure_run(recording, index, own=own, advance=advance)
            if runs_folder is not None:
                cache.save_run(_kept(runs_folder, index), marks[index], measures)
        runs.append(measures)
    left_out: dict[str, str] = {}
    if pairs is None:
        pairs, left_out = _pairs(alike, recording, advance)
        if cache_folder is not None and pairs:
            cache.save_divergence(cache_folder / "pairs.npz", marks.values(), pairs)
    there = _clouds(recording, clouds, runs, advance)
    if cache_folder is not None:
        _keep_clouds(there, clouds, marks, cache_folder)
    return Measures(recording.path, title_of(recording), tuple(runs), pairs, _dim(recording), left_out, there)


def _kept_runs(
    recording: Recording, marks: Mapping[int, str], folder: Path | None
) -> dict[int, RunMeasures | None]:
    """Returns what there is of the runs from before, None for those to be measured."""
    return {
        index: cache.load_run(_kept(folder, index), marks[index]) if folder else None
        for index in recording.runs
    }


def _kept_clouds(
    recording: Recording, marks: Mapping[int, str], cache_folder: Path | None
) -> dict[int, Cloud | None]:
    """Returns what there is of the clouds from before, None for those to be read."""
    return {
        index: cache.load_cloud(_cloud_file(cache_folder, index), marks[index]) if cache_folder else None
        for index in _first_of_each(recording)
    }


def _keep_clouds(
    clouds: Sequence[Cloud],
    kept: Mapping[int, Cloud | None],
    marks: Mapping[int, str],
    cache_folder: Path,
) -> None:
    for cloud in (one for one in clouds if kept[one.run] is None):
        cache.save_cloud(_cloud_file(cache_folder, cloud.run), marks[cloud.run], cloud)


def _clouds(
    recording: Recording, kept: Mapping[int, Cloud | None], runs: Sequence[RunMeasures], advance: Advance
) -> tuple[Cloud, ...]:
    """Returns the clouds, those that are not kept from before read; none of runs that are never finite."""
    labels, found = {run.run: run.label for run in runs}, []
    for index, cloud in kept.items():
        if cloud is None:
            cloud = measure_cloud(recording, recording.run(index), labels[index])
            advance(cloud_bytes(recording.run(index)))
        if cloud is not None:
            found.append(cloud)
    return tuple(found)


def _first_of_each(recording: Recording) -> list[int]:
    """Returns the first run of each group of runs that differ in their seed only, of the first groups."""
    found: dict[str, int] = {}
    for run in recording:
        if run.has_token_rows:
            found.setdefault(repr(run.swept), run.index)
    return list(found.values())[:MAX_CLOUDS]


def _kept(cache_folder: Path, index: int) -> Path:
    return cache_folder / f"{run_folder(index)}.npz"


def _cloud_file(cache_folder: Path, index: int) -> Path:
    return cache_folder / f"{run_folder(index)}_cloud.npz"


def _num_bytes(
    recording: Recording,
    again: Sequence[int],
    alike: Sequence[Sequence[RunRecording]],
    clouds: Mapping[int, Cloud | None],
) -> int:
    """Returns how many recorded bytes there are to read: of runs, their distances, their clouds."""
    paired = (run.num_rows * run.tensor("embeddings").row_bytes for runs in alike for run in runs)
    runs_bytes = sum(measured_bytes(recording, index) for index in again)
    unseen = (index for index, cloud in clouds.items() if cloud is None)
    return sum(paired) + runs_bytes + sum(cloud_bytes(recording.run(index)) for index in unseen)


def title_of(recording: Recording) -> str:
    """Returns the name of the experiment, or of the file where there is none."""
    settings = recording.metadata.get("config", {}).get("experiment", {})
    return str(settings.get("name") or bare_name(recording.path))


def _dim(recording: Recording) -> int:
    """Returns D, 0 without embeddings."""
    return next((run.tensor("embeddings").shape[2] for run in recording if run.has_token_rows), 0)


def _alike(recording: Recording) -> list[list[RunRecording]]:
    """Returns the runs that differ in nothing but their seed, in groups of two at least."""
    groups: dict[str, list[RunRecording]] = {}
    for run in recording:
        if run.has_token_rows:
            groups.setdefault(repr(run.swept), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def _pairs(
    groups: list[list[RunRecording]], recording: Recording, advance: Advance
) -> tuple[dict[str, Divergence], dict[str, str]]:
    """Returns the distances between runs, and why there are none."""
    why = "it takes two runs that differ in their seed only to measure their distance"
    if not any(run.has_token_rows for run in recording):
        why = why_no_tokens(recording.run(recording.runs[0]))
    parts = []
    try:
        for runs in groups:
            sets, _ = token_sets(recording, runs[0])
            parts.append(measure_divergence(runs, sets, advance=advance))
    except UserError as error:
        parts, why = [], str(error)
    if not parts:
        return {}, {"distances between runs": why}
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: joined([part[name] for part in parts]) for name in common}, {}


def _check_shapes(recording: Recording) -> None:
    """Refuses tensors that are not as many per row as their names say, before anything is measured."""
    for run in recording:
        _check_shapes_of(run)


def _check_shapes_of(run: RunRecording) -> None:
    of_parameter = len(run.columns["embeddings"].dims) if "embeddings" in run.columns else 2
    axes = dict.fromkeys(("embeddings", "grads", "momentum", "variance"), 1 + of_parameter)
    axes |= {"logits": 2, "checksums": 2}
    shapes = {name: run.tensor(name).shape for name in run.names if name in ALL_NAMES}
    shapes.pop(RECORDED_TOKENS, None)
    num_rows = next((shape[0] for shape in shapes.values()), 0)
    for name, shape in shapes.items():
        if len(shape) != axes.get(name, 1) or shape[0] != num_rows:
            raise RunError(f"run {run.index} is damaged: {name} is of shape {shape}. See flannel-pl verify.")
