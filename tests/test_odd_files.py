"""A pipe, a socket, a device or a folder where a file is read: one line, no waiting, no memory eaten."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from tests.conftest import SmallData
from tests.recording.recording_samples import make_experiment, make_schema

ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a socket": lambda path: _bind(path),
    "a circle": lambda path: path.symlink_to(path.name),
}


def _bind(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


@pytest.fixture(params=ODD.values(), ids=list(ODD))
def odd(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    made: Callable[[Path], object] = request.param
    return made


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize(
    "argument",
    ["--data.corpus_path", "--data.tokenizer_path", "--data.mask_path", "--recorder.tokens", "--config"],
)
def test_in_place_of_a_file_of_the_users(
    small_data: SmallData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    argument: str,
) -> None:
    ODD[kind](tmp_path / "odd")
    words = ["--trainer.max_steps", "3", "--experiment.output_dir", str(tmp_path / "out")]
    assert main(["fit", *small_data.arguments, *words, argument, str(tmp_path / "odd")]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "odd") in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = make_experiment(
        tmp_path_factory.mktemp("finished") / "x",
        gather="index",
        num_runs=1,
        tensors=make_schema().names[1:-3],
    )
    assert main(["gather", str(paths.folder)]) == 0
    (paths.folder / "events.jsonl").write_text('{"event": "launch_ended"}\n')
    return paths.folder


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name",
    [
        *("experiment.json", "live_dead_tokens.safetensors", "x.safetensors.index.json", "lock"),
        *(
            "x.extras.safetensors",
            "run_0/recording.safetensors",
            "run_0/journal",
            "events.jsonl",
            *("jobs.json", "slurm.json"),
        ),
        *("x.safetensors", "x.safetensors.partial", "run_0/lock"),
    ],
)
def test_in_place_of_a_file_of_an_experiment(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    odd: Callable[[Path], object],
    name: str,
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(finished, folder)
    if (folder / name).exists():
        (folder / name).unlink()
    odd(folder / name)
    for verb in ("info", "verify", "status", "gather"):
        assert main([verb, str(folder)]) in (0, 1, 2)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert len(said.err.splitlines()) <= 1
    assert main(["compare", str(folder), str(finished)]) in (0, 1, 2)
    assert main(["verify", str(folder / name)]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err
