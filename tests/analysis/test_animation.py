"""The animation as a user asks for it: the file, its numbers, and what no animation can be of."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.analysis.drawing.film import Film
from flannel_pl.analysis.measuring.all_runs import measure_experiment
from flannel_pl.analysis.measuring.film import film_rows, frame_ms
from flannel_pl.analysis.reporting import animation
from flannel_pl.analysis.statistics.epochs import rule_a
from flannel_pl.errors import UserError
from flannel_pl.recording.formats.lazy import LazyTensor
from tests.analysis.samples import Array, save_recording, walk
from tests.mounting import read_only
from tests.recording.recording_samples import make_experiment

DEAD_TOKENS = [0, 1, 4]
ENDS = "expected a file that ends in .gif or .png (an animated PNG)"


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    return save_recording(tmp_path / "trial.safetensors", [walk(1), walk(2)], dead=DEAD_TOKENS)


@pytest.mark.usefixtures("one_picture")
@pytest.mark.parametrize("name", ["moves.gif", "new/moves.PNG"])
def test_the_same_recording_gives_the_same_bytes(
    name: str, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    assert main(["report", str(trial), "--animation", str(file)]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"report: {tmp_path / 'trial_report' / 'index.html'}"
    assert second.startswith(f"animation: {file}, ")
    assert third.startswith("2.95 KiB read and drawn in ")  # of one run each row once more
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as moving:
        shown = []
        for number in range(moving.n_frames):  # type: ignore[attr-defined]
            moving.seek(number)
            shown.append(moving.info["duration"])
    assert shown == frame_ms(np.arange(7))
    file.unlink()
    assert flannel_pl.report(trial, animation=file).animation == file
    assert file.read_bytes() == content
    assert [path.name for path in file.parent.iterdir() if "partial" in path.name] == []


def film_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Film, list[Any]]:
    """Returns what an animation would draw, and the keys of embeddings that are read for it."""
    films: list[Film] = []
    read: list[Any] = []
    get = LazyTensor.__getitem__

    def keep(film: Film) -> Iterator[Array]:
        films.append(film)
        return iter(())

    def note(tensor: LazyTensor, key: Any) -> Any:
        if len(tensor.shape) == 3:
            read.append(key)
        return get(tensor, key)

    with flannel_pl.open_recording(path) as recording, monkeypatch.context() as patch:
        measures = measure_experiment(recording)
        patch.setattr(animation, "film_frames", keep)
        patch.setattr(animation, "film_bytes", lambda frames, *_, **__: bytes(len(list(frames))))
        patch.setattr(LazyTensor, "__getitem__", note)
        animation.write_animation(path.with_suffix(".gif"), recording, measures, lambda *_: None)
    (film,) = films
    return film, read


def test_tokens_are_where_numpy_says_and_only_the_rows_shown_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    W_RVD = walk(3, num_rows=300, num_tokens=20, scale=0.002)
    runs = [W_RVD, walk(4, num_rows=5, num_tokens=20)]
    film, read = film_of(save_recording(tmp_path / "r.safetensors", runs, dead=[0, 1, 8]), monkeypatch)
    rows = film_rows(np.arange(300))
    assert len(rows) < 100
    assert sorted(key[0] for key in read) == rows.tolist()
    assert film.cloud.steps_F.tolist() == rows.tolist()
    assert film.cloud.fitted_step == 299
    order = [0, 1, 8, *(token for token in range(20) if token not in (0, 1, 8))]
    assert film.cloud.tokens_S.tolist() == order
    W_RSD = W_RVD[:, order].astype(np.float64)
    _, axes_DD = np.linalg.eigh(np.cov(W_RSD[-1].T))
    for axis in (0, 1):
        expected = W_RSD[rows] @ axes_DD[:, -1 - axis]
        found = film.cloud.points_F3S[:, axis]
        assert min(np.abs(found - expected).max(), np.abs(found + expected).max()) < 1e-6
    assert film.live_radius_R is not None
    for radius_R, tokens in ((film.radius_R, order[:3]), (film.live_radius_R, order[3:])):
        expected = np.linalg.norm(W_RVD[:, tokens].astype(np.float64), axis=2).mean(axis=1)
        np.testing.assert_allclose(radius_R, expected, rtol=1e-12)
    assert film.rest_S is not None
    for token, rest in zip(order, film.rest_S, strict=False):
        changed = np.flatnonzero((np.diff(W_RVD[:, token], axis=0) != 0).any(axis=1)) + 1
        last = int(changed[-1]) if len(changed) else 0
        assert rest == (-1 if last == 299 else last)
    assert film.rest_S.tolist() == [150, 0, -1]
    assert (film.num_dead, film.num_live) == (3, 17)


def test_epochs_are_the_first_runs_by_rule_b_or_by_rule_a_where_that_is_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_R = np.arange(300)
    radius_R = 0.2 - 0.01 * np.exp(-((steps_R - 2.0) ** 2)) + 0.3 / (1 + np.exp((24.5 - steps_R) / 8))
    radius_R[120:] = radius_R[120]
    runs = [np.tile(radius_R[:, None, None] * how, (1, 8, 4)).astype(np.float32) / 2 for how in (1, -3)]
    by_b = save_recording(tmp_path / "b.safetensors", runs, dead=[0, 1], dtype=torch.float32)
    by_a = save_recording(tmp_path / "a.safetensors", runs, dead=[0, 1], dtype=torch.float64)
    expected = [("inhale", 0, 2), ("sneeze", 2, 24), ("deceleration", 24, 121), ("Fimbulwinter", 121, 299)]
    assert film_of(by_b, monkeypatch)[0].epochs == expected
    film, _ = film_of(by_a, monkeypatch)
    assert film.epochs == rule_a(film.radius_R, steps_R).intervals(299)
    assert film.epochs != expected
    assert film.rest_S is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "moves.mp4",
            f"--animation is moves.mp4, {ENDS}",
        ),
        ("moves", f"--animation is moves, {ENDS}"),
        ("here.gif", "--animation is here.gif, which is a folder; expected a file, which need not exist"),
    ],
)
def test_a_file_that_no_animation_can_be(
    name: str,
    said: str,
    trial: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.gif").mkdir()
    refuses(["report", str(trial), "--animation", name], said, trial.parent, capsys)
    refuses(["report", "no_such_recording", "--animation", name], said, trial.parent, capsys)  # told first


def refuses(words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Holds that a command is refused in one line, and that nothing was written."""
    before = sorted(folder.rglob("*"))
    assert main(words) == 2
    assert capsys.readouterr().err == f"flannel-pl: error: {said}\n"
    assert sorted(folder.rglob("*")) == before


def test_a_place_where_nothing_can_be_written(trial: Path, tmp_path: Path) -> None:
    (tmp_path / "sealed").mkdir()
    with read_only(tmp_path / "sealed"), pytest.raises(UserError) as refused:
        flannel_pl.report(trial, animation=tmp_path / "sealed" / "x.gif")
    said = str(refused.value)
    assert said.startswith(f"cannot write the animation {tmp_path / 'sealed' / 'x.gif'}: no permission")
    assert said.endswith("; choose another place with --animation")
    assert not (tmp_path / "trial_report").exists()


def no_embeddings(folder: Path) -> tuple[Path, str]:
    make_experiment(folder / "losses", num_runs=1, gather="index", tensors=["losses"])
    path = folder / "losses"
    return path, (
        f"--animation shows where tokens are, but of {path} the embeddings are not recorded; "
        "--recorder.tensors [embeddings, losses] would"
    )


def no_dead(folder: Path) -> tuple[Path, str]:
    path = save_recording(folder / "r.safetensors", [walk(1)], dead=[])
    return path, f"--animation follows the dead tokens, of which {path} has none: no dead token is recorded"


def two_rows(folder: Path) -> tuple[Path, str]:
    path = save_recording(folder / "r.safetensors", [walk(1, num_rows=2)], dead=[1])
    return path, (
        f"--animation takes 3 rows at least, and run 0 of {path} has 2; record more steps, or with a smaller "
        "recorder.every_n_steps"
    )


def a_sweep(folder: Path) -> tuple[Path, str]:
    path = folder / "sweep"
    make_experiment(path, num_runs=2, gather="index", swept=lambda run: {"model.init_scale": 0.02 + run})
    return path, (
        f"--animation shows runs that differ in their seed only, and those of {path} differ in "
        "model.init_scale; name the folder of one run instead"
    )


@pytest.mark.parametrize("make", [no_embeddings, no_dead, two_rows, a_sweep])
def test_a_recording_that_no_animation_can_be_of(
    make: Callable[[Path], tuple[Path, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, said = make(tmp_path)
    refuses(["report", str(path), "--animation", str(tmp_path / "x.gif")], said, tmp_path, capsys)


def test_several_recordings(trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_recording(tmp_path / "other.safetensors", [walk(5)], dead=[1])
    said = (
        f"--animation shows one recording, and 2 are given: {trial}, {other}; name one of them, the others "
        "in reports of their own"
    )
    refuses(["report", str(trial), str(other), "--animation", "x.gif"], said, tmp_path, capsys)


@pytest.mark.usefixtures("one_picture")
def test_weights_that_are_never_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    W_RVD = walk(1)
    W_RVD[:, 4] = np.inf
    path = save_recording(tmp_path / "r.safetensors", [W_RVD], dead=[4])
    assert main(["report", str(path), "--animation", str(tmp_path / "x.gif")]) == 2
    said = f"run 0 of {path} has no animation: no row of it has finite weights"
    assert capsys.readouterr().err == f"flannel-pl: error: {said}\n"
    assert not (tmp_path / "x.gif").exists()
