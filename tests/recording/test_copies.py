"""Tensors of recordings in other people's hands: copied, pickled, in threads and in other processes.

What is right is what the safetensors library reads. Two files are open at once, since a descriptor that gets
into the wrong hands may be the other file's.
"""

import copy
import functools
import itertools
import multiprocessing
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array
import joblib
import numpy as np
import pytest
import xarray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader

from flannel_pl.errors import RunError
from flannel_pl.recording.formats import opening
from flannel_pl.recording.formats.lazy import LazyTensor
from flannel_pl.recording.formats.safetensors.file import SafetensorsFile
from flannel_pl.recording.reader import Recording, open_recording
from tests.recording.copying import Rows, digest, read_row
from tests.recording.recording_samples import MAX_STEPS, make_experiment, make_writer, write_rows

NUM_ROWS = MAX_STEPS + 1
NAMES = ("embeddings", "variance")


def pickled(protocol: int, thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing, protocol))


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": functools.partial(pickled, protocol)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "cloudpickle": lambda thing: cloudpickle.loads(cloudpickle.dumps(thing)),
}
METHODS = multiprocessing.get_all_start_methods()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished recordings of the same shapes."""
    folder = tmp_path_factory.mktemp("two")
    for number in (1, 2):
        writer = make_writer(folder / f"run_{number}")
        write_rows(writer, range(NUM_ROWS), seed=number)
        writer.finish()
    return [folder / f"run_{number}" / "recording.safetensors" for number in (1, 2)]


@pytest.fixture
def recordings(files: list[Path]) -> Iterator[list[Recording]]:
    recordings = [open_recording(file) for file in files]
    yield recordings
    for recording in recordings:
        recording.close()


def truth(file: Path, name: str, rows: slice = slice(None)) -> str:
    """Returns the digest of a tensor's rows as the safetensors library reads them."""
    with safe_open(file, framework="pt") as there:
        return digest(there.get_tensor(name)[rows])


def rows_of(files: list[Path], name: str) -> list[str]:
    """Returns the digest of each row of a tensor, one file after the other."""
    return [truth(file, name, slice(row, row + 1)) for file in files for row in range(NUM_ROWS)]


def tasks(recordings: list[Recording], name: str = "embeddings") -> list[tuple[LazyTensor, int]]:
    return [(recording.run(0).tensor(name), row) for recording in recordings for row in range(NUM_ROWS)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("framework", ["np", "pt"])
def test_whatever_is_closed_first(files: list[Path], way: str, framework: Any) -> None:
    expected = [truth(file, "embeddings") for file in files]
    for order in itertools.permutations(range(4)):
        originals = [open_recording(file, framework=framework) for file in files]
        four = [*originals, *(WAYS[way](recording) for recording in originals)]
        closed: set[int] = set()
        for closing in order:
            four[closing].close()
            closed.add(closing)
            for number, recording in enumerate(four):
                tensor = recording.run(0).embeddings
                if number in closed:
                    with pytest.raises(ValueError, match=r"recording.safetensors is closed"):
                        tensor[0]
                else:
                    assert digest(tensor[:]) == expected[number % 2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("take", [lambda run: run, lambda run: {name: run.tensor(name) for name in NAMES}])
def test_a_run_and_several_tensors(files: list[Path], way: str, take: Callable[[Any], Any]) -> None:
    with open_recording(files[0]) as first:
        copied = WAYS[way](take(first.run(0)))
        with open_recording(files[1]) as second:
            other = WAYS[way](take(second.run(0)))
            for name in NAMES:
                for thing, file in ((copied, files[0]), (other, files[1])):
                    tensor = thing[name] if isinstance(thing, dict) else thing.tensor(name)
                    assert digest(tensor[:]) == truth(file, name)


def test_a_pickle_outlives_what_it_was_made_of(files: list[Path]) -> None:
    with open_recording(files[0]) as recording:
        text = pickle.dumps(recording.run(0).embeddings)
    with open_recording(files[1]) as other:  # gets the first one's descriptor
        assert digest(pickle.loads(text)[:]) == truth(files[0], "embeddings")
        assert digest(other.run(0).embeddings[:]) == truth(files[1], "embeddings")


def test_a_pickle_finds_its_file_from_another_folder(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[0].parent)
    with open_recording(files[0].name) as recording:
        text = pickle.dumps(recording.run(0).embeddings)
    monkeypatch.chdir(tmp_path)
    assert digest(pickle.loads(text)[:]) == truth(files[0], "embeddings")


@pytest.mark.parametrize("decoy", [False, True])
def test_another_working_folder_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoy: bool
) -> None:
    homes = [tmp_path / name for name in ("first", "second")]
    for number, home in enumerate(homes, start=1):
        home.mkdir()
        paths = make_experiment(home / "trial", num_runs=1)
        masks = load_file(paths.masks)
        save_file(masks | {"token_occurrence_counts": masks["token_occurrence_counts"] * number}, paths.masks)
    file = homes[0] / "trial" / "run_0" / "recording.safetensors"
    monkeypatch.chdir(homes[0])
    with open_recording("trial/run_0") as recording:
        monkeypatch.chdir(homes[1] if decoy else tmp_path)
        for keep in (64, 0):
            opening._close_idle(keep=keep)
            for one in (recording, copy.deepcopy(recording), pickled(4, recording)):
                assert digest(one.run(0).embeddings[:]) == truth(file, "embeddings")
                assert one.masks["token_occurrence_counts"].max() == 5


def test_a_closed_one_is_not_copied(files: list[Path]) -> None:
    with open_recording(files[0]) as recording:
        tensor = recording.run(0).embeddings
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ValueError, match=r"recording.safetensors is closed"):
            way(tensor)


def replace(file: Path, other: Path) -> None:
    other.replace(file)


def overwrite(file: Path, other: Path) -> None:
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns + 1)
    file.write_bytes(other.read_bytes())
    os.utime(file, ns=times)


def give_its_inode(file: Path, other: Path) -> None:
    """Has the file's number go to a new one, if the system gives it away at once; else just another file."""
    data = other.read_bytes()
    file.unlink()
    file.write_bytes(data)


@pytest.mark.parametrize("change", [replace, overwrite, give_its_inode])
@pytest.mark.parametrize("is_pickled", [True, False])
def test_another_file_of_the_same_header_is_refused(
    files: list[Path], tmp_path: Path, change: Callable[[Path, Path], None], is_pickled: bool
) -> None:
    file, other = (
        Path(shutil.copyfile(name, tmp_path / f"{name.parent.name}.safetensors")) for name in files
    )
    assert file.stat().st_size == other.stat().st_size
    with open_recording(file) as recording:
        tensor = recording.run(0).embeddings
        text = pickle.dumps(tensor)
        opening._close_idle(keep=0)
        change(file, other)
        with pytest.raises(
            RunError, match=r"is another file than the one that was opened, or was written to"
        ):
            (pickle.loads(text) if is_pickled else tensor)[0]


def cut_and_lengthen(file: Path, _: Path) -> None:
    """Leaves zeros."""
    num_bytes = file.stat().st_size
    os.truncate(file, 0)
    os.truncate(file, num_bytes)


@pytest.mark.parametrize("change", [overwrite, cut_and_lengthen])
@pytest.mark.parametrize("read", [lambda x: x[:], lambda x: next(x.stream()), np.asarray, copy.deepcopy])
def test_a_file_that_is_written_to_while_it_is_open_is_refused(
    files: list[Path], tmp_path: Path, change: Callable[[Path, Path], None], read: Callable[[Any], Any]
) -> None:
    file = Path(shutil.copyfile(files[0], tmp_path / "first.safetensors"))
    with open_recording(file) as recording:
        tensor = recording.run(0).embeddings
        tensor[0]  # so that it stays open
        change(file, files[1])
        with pytest.raises(
            RunError, match=r"is another file than the one that was opened, or was written to"
        ):
            read(tensor)


@pytest.mark.parametrize("change", [replace, give_its_inode, lambda file, _: file.unlink()])
def test_a_file_whose_name_goes_to_another_while_it_is_open_is_read_on(
    files: list[Path], tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    file, other = (Path(shutil.copyfile(name, tmp_path / name.parent.name)) for name in files)
    with open_recording(file) as recording:
        recording.run(0).embeddings[0]
        change(file, other)
        assert digest(recording.run(0).embeddings[:]) == truth(files[0], "embeddings")


def test_a_descriptor_that_others_closed_gives_no_other_files_bytes(files: list[Path]) -> None:
    with open_recording(files[0]) as recording, files[1].open("rb") as other:
        tensor = recording.run(0).embeddings
        tensor[0]
        assert isinstance(tensor._file, SafetensorsFile)
        os.dup2(other.fileno(), opening._open[id(tensor._file._descriptor)].fd)  # as after os.closerange
        with pytest.raises(RunError, match="is another file than the one that was opened"):
            tensor[0]


def test_a_file_that_is_gone_is_named(files: list[Path], tmp_path: Path) -> None:
    file = Path(shutil.copyfile(files[0], tmp_path / "gone.safetensors"))
    with open_recording(file) as recording:
        text = pickle.dumps(recording.run(0).embeddings)
    file.unlink()
    with pytest.raises(RunError, match=r"Cannot read \S*gone.safetensors: No such file or directory\. Bring"):
        pickle.loads(text)


def test_numpy_gets_a_copy_or_a_refusal(recordings: list[Recording], files: list[Path]) -> None:
    tensor = recordings[0].run(0).embeddings
    assert digest(np.asarray(tensor)) == truth(files[0], "embeddings")
    assert np.asarray(tensor, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="copy=False forbids it"):
        np.asarray(tensor, copy=False)


@pytest.mark.parametrize("name", NAMES)
def test_threads(recordings: list[Recording], files: list[Path], name: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_row, tasks(recordings, name))) == rows_of(files, name)


@pytest.mark.parametrize("method", METHODS)
def test_pools(recordings: list[Recording], files: list[Path], method: str) -> None:
    context, expected = multiprocessing.get_context(method), rows_of(files, "embeddings")
    with context.Pool(2) as pool:
        assert pool.map(read_row, tasks(recordings)) == expected
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(read_row, tasks(recordings))) == expected
        for recording in recordings:
            recording.close()
        with open_recording(files[1]) as second, open_recording(files[0]) as first:
            assert list(executor.map(read_row, tasks([first, second]))) == expected


@pytest.mark.skipif("fork" not in METHODS, reason="this system forks no processes")
def test_a_fork_while_a_thread_reads(recordings: list[Recording], files: list[Path]) -> None:
    over, tensor = threading.Event(), recordings[0].run(0).embeddings
    context = multiprocessing.get_context("fork")

    def read() -> None:
        while not over.is_set():
            tensor[0]

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(20):
            with context.Pool(1) as pool:
                found = pool.apply_async(read_row, [(recordings[1].run(0).embeddings, 0)]).get(timeout=60)
            assert found == rows_of(files[1:], "embeddings")[0]
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(recordings: list[Recording], files: list[Path], backend: str) -> None:
    with joblib.parallel_config(backend, n_jobs=2):
        found = joblib.Parallel()(joblib.delayed(read_row)(task) for task in tasks(recordings))
    assert found == rows_of(files, "embeddings")
    if backend == "loky":
        joblib.externals.loky.get_reusable_executor().shutdown(wait=True)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_dask(recordings: list[Recording], files: list[Path], scheduler: str) -> None:
    arrays = [dask.array.from_array(r.run(0).embeddings, chunks=(2, 7, 4)) for r in recordings]
    with dask.config.set({"scheduler": scheduler, "multiprocessing.context": "fork"}):
        found = dask.compute(*arrays)
        assert [digest(array) for array in found] == [truth(file, "embeddings") for file in files]
        recordings[0].close()
        assert digest(arrays[1][2:5].compute()) == truth(files[1], "embeddings", slice(2, 5))
        with pytest.raises(ValueError, match="is closed"):
            arrays[0].compute()


@pytest.mark.parametrize("chunks", [None, "auto", -1, (3, "auto", -1)])
def test_dask_chooses_chunks(recordings: list[Recording], files: list[Path], chunks: Any) -> None:
    chosen = {} if chunks is None else {"chunks": chunks}
    for recording, file in zip(recordings, files, strict=True):
        run = recording.run(0)
        for name in run.names:
            one_each = chunks if name == "embeddings" or not isinstance(chunks, tuple) else "auto"
            array = dask.array.from_array(run.tensor(name), **(chosen and {"chunks": one_each}))
            assert digest(array.compute(scheduler="synchronous")) == truth(file, name), name


def test_a_copied_tensor_outlives_its_recording(files: list[Path]) -> None:
    with open_recording(files[0]) as recording:
        copied = [copy.copy(recording.run(0).embeddings), copy.copy(recording.run(0)).embeddings]
    for tensor in copied:
        assert digest(tensor[:]) == truth(files[0], "embeddings")


def test_xarray_over_dask(recordings: list[Recording], files: list[Path]) -> None:
    arrays = [dask.array.from_array(r.run(0).losses_f32, chunks=3, name=False) for r in recordings]
    steps = recordings[0].run(0).steps
    data = xarray.concat(
        [xarray.DataArray(array, dims=["step"], coords={"step": steps}) for array in arrays],
        dim=xarray.IndexVariable("run", [1, 2]),
    )
    for number, file in enumerate(files):
        assert digest(data.sel(run=number + 1).to_numpy()) == truth(file, "losses_f32")
        one = data.sel(run=number + 1, step=4).to_numpy().reshape(1)
        assert digest(one) == truth(file, "losses_f32", slice(4, 5))


IMPORTS_TORCH_ANEW = [pytest.param(method, marks=pytest.mark.slow) for method in METHODS if method != "fork"]


@pytest.mark.parametrize("method", [None, *(["fork"] if "fork" in METHODS else []), *IMPORTS_TORCH_ANEW])
def test_workers_of_a_data_loader(recordings: list[Recording], files: list[Path], method: str | None) -> None:
    data: Any = Rows(*(recording.run(0).embeddings for recording in recordings))
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=None, num_workers=0 if method is None else 2, multiprocessing_context=method
    )
    assert list(loader) == rows_of(files, "embeddings")
