"""The film of a run: which rows it has, how long each is shown, and what is seen in it."""

import dataclasses
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from flannel_pl.analysis.drawing.film import (
    CLOUD_BOX,
    DEAD,
    HEIGHT,
    RESTING,
    WIDTH,
    Film,
    _Scene,
    epoch_at,
    film_frames,
    palette,
)
from flannel_pl.analysis.drawing.film_file import film_bytes
from flannel_pl.analysis.drawing.panels import Band
from flannel_pl.analysis.measuring.film import FILM_MS, HOLD_MS, MAX_FRAMES, film_rows, frame_ms
from flannel_pl.analysis.measuring.results import Cloud
from tests.analysis.samples import Array
from tests.analysis.synthetic import BANDS, NUM_DEAD

MB = 1_000_000


def make_film(steps_R: Array, *, num_dead: int = 200, num_live: int = 200, noise: float = 0.0) -> Film:
    """Makes a film in which the dead tokens leave to the right, and come to rest one after the other."""
    rows = film_rows(steps_R)
    draw = np.random.default_rng(0)
    dead_S = np.repeat([1, 0], [num_dead, num_live])
    points_F3S = draw.normal(0, 0.02, (1, 3, len(dead_S))).repeat(len(rows), axis=0)
    away_R = 0.5 * (1 - np.exp(-np.maximum(steps_R - 2, 0) / 60))
    points_F3S[:, 0] += away_R[rows, None] * dead_S
    points_F3S += draw.normal(0, noise, points_F3S.shape)
    shares_3 = np.array([0.9, 0.05, 0.01])
    cloud = Cloud(
        *(0, "seed 42", np.arange(len(dead_S)), dead_S, steps_R[rows], points_F3S.astype(np.float32)),
        *(int(steps_R[-1]), shares_3),
    )
    dip_R = 0.001 * np.minimum(steps_R / 2, 1)
    return Film(
        *(cloud, steps_R, 0.16 - dip_R + away_R, 0.16 + away_R / 8, BANDS, NUM_DEAD, 6301),
        rest_S=np.linspace(300, 700, num_dead).astype(np.int64),
    )


@pytest.fixture(scope="module")
def film() -> Film:
    return make_film(np.arange(1001))


def nearest_step(moment: float, last: int) -> int:
    """Returns the whole step that is shown nearest to a moment between 0 and 1, by the formula."""
    exact = math.expm1(moment * math.log1p(last))
    below, above = math.floor(exact + 1e-9), math.ceil(exact - 1e-9)
    return min((below, above), key=lambda step: abs(math.log1p(step) / math.log1p(last) - moment))


@pytest.mark.parametrize("last", [2, 3, 60, 1000, 20_000])
def test_rows_are_those_nearest_to_moments_evenly_spread(last: int) -> None:
    expected = {nearest_step(k / (MAX_FRAMES - 1), last) for k in range(MAX_FRAMES)}
    assert film_rows(np.arange(last + 1)).tolist() == sorted(expected)


@pytest.mark.parametrize("steps", [[0, 5, 10], [*range(0, 1_000_000, 100)], [7, 8, 9, 400, 401], [0, 1]])
def test_rows_of_any_steps_are_few_and_go_from_the_first_to_the_last(steps: list[int]) -> None:
    rows = film_rows(np.array(steps))
    assert (rows[0], rows[-1]) == (0, len(steps) - 1)
    assert len(rows) <= MAX_FRAMES <= 120
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("last", [2, 60, 1000])
def test_frames_last_as_long_as_the_logarithm_says(last: int) -> None:
    steps = film_rows(np.arange(last + 1)).tolist()
    *shown, hold = frame_ms(np.array(steps))
    assert hold == HOLD_MS
    assert sum(shown) == FILM_MS
    assert 9000 <= FILM_MS + HOLD_MS <= 11_000
    for before, after, ms in zip(steps, steps[1:], shown, strict=False):
        assert ms % 10 == 0
        assert abs(ms - FILM_MS * math.log((1 + after) / (1 + before)) / math.log(1 + last)) <= 10


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_a_file_has_every_frame_for_its_time_and_begins_again(suffix: str) -> None:
    colors_C3, draw = palette(), np.random.default_rng(1)
    frames = [colors_C3[draw.integers(0, len(colors_C3), (40, 60))] for _ in range(4)]
    shown = [100, 30, 20, 1500]
    content = film_bytes(frames, shown, suffix, palette_C3=colors_C3)
    with Image.open(io.BytesIO(content)) as file:
        assert (file.n_frames, file.size, file.info["loop"]) == (4, (60, 40), 0)  # type: ignore[attr-defined]
        for number, (frame_HW3, ms) in enumerate(zip(frames, shown, strict=True)):
            file.seek(number)
            assert file.info["duration"] == ms
            found = np.asarray(file.convert("RGB")).astype(int)
            assert np.abs(found - frame_HW3).max() <= 8  # Pillow takes a colour beside the right one for it


def test_the_palette_is_of_few_colors_and_has_those_that_are_drawn() -> None:
    colors = {tuple(color) for color in palette().tolist()}
    assert len(palette()) <= 255
    assert {tuple(bytes.fromhex(color[1:])) for color in (DEAD, RESTING)} <= colors


def test_an_epoch_ends_with_the_step_of_its_boundary() -> None:
    names = [epoch_at(BANDS, step) for step in range(1001)]
    assert (
        names
        == ["inhale"] * 3
        + ["sneeze"] * 22
        + ["deceleration"] * 226
        + ["re-expansion"] * 143
        + ["Fimbulwinter"] * 607
    )
    assert epoch_at([], 0) == ""
    assert epoch_at([("sneeze", 3, 9)], 1) == ""


def scene_of(film: Film) -> tuple[_Scene, Figure]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    return _Scene(film, figure), figure


def test_every_frame_says_its_step_and_epoch(film: Film) -> None:
    scene, _ = scene_of(film)
    for frame, row in enumerate(film_rows(np.arange(1001)).tolist()):
        scene.moved_to(frame)
        assert scene.counter.get_text() == f"step {row:,} of 1,000"
        assert scene.epoch.get_text() == next(name for name, _, last in BANDS if row <= last)
        assert np.asarray(scene.mark.get_xdata())[0] == pytest.approx(math.log1p(row) / math.log1p(1000))


NARROW = [("inhale", 0, 2), ("sneeze", 2, 9), ("deceleration", 9, 10), ("re-expansion", 10, 11)]


@pytest.mark.parametrize("epochs", [BANDS, [*NARROW, ("Fimbulwinter", 960, 1000)]])
def test_words_are_large_enough_and_apart_and_within_the_picture(film: Film, epochs: list[Band]) -> None:
    scene, figure = scene_of(dataclasses.replace(film, epochs=epochs))
    for frame in (0, 30, 50, 70, len(scene.steps_F) - 1):
        scene.moved_to(frame)
        figure.canvas.draw()
        shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        assert min(float(text.get_fontsize()) for text in shown) >= 11  # a point is a pixel
        boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
        for number, (words, box) in enumerate(boxes):
            assert 0 <= box.x0 < box.x1 <= WIDTH, words
            assert 0 <= box.y0 < box.y1 <= HEIGHT, words
            overlapping = [other for other, there in boxes[:number] if box.overlaps(there)]
            assert not overlapping, words


def test_an_inhale_that_could_not_be_seen_is_enlarged_and_no_other(film: Film) -> None:
    scene, figure = scene_of(film)
    *_, (rows, radius_K, _, _) = scene.curves
    assert len(scene.curves) == 3
    (times,) = re.findall(r"enlarged ([\d,]+) times", " ".join(t.get_text() for t in figure.findobj(Text)))
    seen = np.isfinite(radius_K)
    assert rows[seen].tolist() == [0, 1, 2]  # until it is as far above the start as it was below
    change_K = film.radius_R[rows[seen]] - film.radius_R[0]
    np.testing.assert_allclose(radius_K[seen] - radius_K[0], int(times.replace(",", "")) * change_K)
    low, high = figure.axes[1].get_ylim()
    assert 0.1 < (radius_K[0] - radius_K[2]) / (high - low) < 0.3
    flat_R, deep_R = film.radius_R.copy(), film.radius_R.copy()
    flat_R[:3], deep_R[2] = flat_R[0], 0
    for radius_R in (flat_R, deep_R):
        assert len(scene_of(dataclasses.replace(film, radius_R=radius_R))[0].curves) == 2
    assert len(scene_of(dataclasses.replace(film, epochs=BANDS[1:]))[0].curves) == 2


def orange(frame_HW3: Array) -> Array:
    """Returns the pixels of the cloud's part in which a dead token is, (2, P): x, and y upwards."""
    _, top, _, height = CLOUD_BOX
    part = frame_HW3[top : top + height].astype(int)
    y, x = np.nonzero(part[:, :, 0] - part[:, :, 2] > 150)  # tails are fainter
    return np.stack([x, -y])


def test_a_token_is_drawn_where_it_is_until_it_rests() -> None:
    film = make_film(np.arange(61), num_dead=1, num_live=2)
    cloud = film.cloud
    points_F3S = cloud.points_F3S.copy()
    points_F3S[:, :2, 0] = np.stack([0.1 + np.cos(cloud.steps_F / 9), np.sin(cloud.steps_F / 9)], 1) / 2
    cloud = dataclasses.replace(cloud, points_F3S=points_F3S)
    frames = list(film_frames(dataclasses.replace(film, cloud=cloud, rest_S=np.array([30]))))
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    moving_F = cloud.steps_F < 30
    assert [orange(frame).size > 0 for frame in frames] == moving_F.tolist()
    places_F2 = np.array([orange(frame).mean(axis=1) for frame in frames[: moving_F.sum()]])
    true_F2 = points_F3S[moving_F, :2, 0].astype(np.float64)
    # One scale for both axes, and the same for all frames.
    shown, true = ((places - places.mean(axis=0)).ravel() for places in (places_F2, true_F2))
    scale = (shown @ true) / (true @ true)
    assert scale > 100
    assert np.abs(shown - scale * true).max() < 1  # pixel


def test_without_live_tokens_rest_or_epochs_there_is_still_a_film(film: Film) -> None:
    film = make_film(np.arange(0, 30, 10), num_live=0)
    film = dataclasses.replace(film, live_radius_R=None, epochs=[], rest_S=None)
    scene, figure = scene_of(film)
    scene.moved_to(2)
    words = [text.get_text() for text in figure.findobj(Text)]
    assert "never occur" in words
    assert not {"occur", "at rest for good"} & set(words)
    assert len(list(film_frames(film))) == 3


def test_gaps_and_clouds_that_never_move_are_no_error() -> None:
    film = make_film(np.arange(5), num_dead=3, num_live=1)
    points_F3S = np.zeros_like(film.cloud.points_F3S)
    points_F3S[2, :, 1] = np.nan
    film = dataclasses.replace(
        film,
        cloud=dataclasses.replace(film.cloud, points_F3S=points_F3S),
        radius_R=np.array([1, 1, np.nan, 1, 1.0]),
        live_radius_R=np.ones(5),
        epochs=[],
    )
    assert len(list(film_frames(film))) == 5


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_a_film_of_most_frames_in_which_all_moves_is_small(suffix: str) -> None:
    film = make_film(np.arange(1_000_001), noise=0.01)
    steps_F = film.cloud.steps_F
    assert len(steps_F) > 100
    film_file = film_bytes(film_frames(film), frame_ms(steps_F), suffix, palette_C3=palette())
    assert MB / 10 < len(film_file) <= 3 * MB


def test_the_committed_film_is_one_of_a_thousand_steps() -> None:
    docs = Path(__file__).parents[2] / "docs"
    path, page = docs / "assets" / "flannel3.gif", (docs / "report.md").read_text(encoding="utf-8")
    assert path.stat().st_size <= 3 * MB
    steps_F = film_rows(np.arange(1001))
    with Image.open(path) as file:
        assert (file.size, file.info["loop"]) == ((WIDTH, HEIGHT), 0)
        assert file.n_frames == len(steps_F)  # type: ignore[attr-defined]
        shown = []
        for number in range(len(steps_F)):
            file.seek(number)
            shown.append(file.info["duration"])
    assert shown == frame_ms(steps_F)
    size, colors = f"{WIDTH} x {HEIGHT} pixels", f"in {len(palette())} colours"
    frames = f"at most {MAX_FRAMES} frames; the one above has {len(steps_F)}"
    megabytes = f"{path.stat().st_size / MB:.1f} MB"
    words = f"The file is {size}, on a dark ground of its own, {colors}, and has {frames} and {megabytes}."
    assert words in page.replace("\n", " ")
    assert f"row 0 for {shown[0] / 1000:.2f} seconds, the last ones for {shown[-2] / 1000:.2f}" in page
