"""A film of a run: where its tokens are, and how far they are from zero, one picture for each frame.

It brings its own dark background, so it looks the same on a light page and on a dark one. What does not move
is drawn once; the rest on a copy of that. A point is a pixel, so font sizes are pixels.

Shape suffixes: F frames, R rows, K rows of a curve, S tokens, H and W pixels, C colours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from flannel_pl.analysis.drawing.colors import COLORS, legend
from flannel_pl.analysis.drawing.panels import STYLE, Band, thinned
from flannel_pl.analysis.measuring.film import film_rows, film_time
from flannel_pl.analysis.measuring.results import Cloud
from flannel_pl.analysis.words import counted
from flannel_pl.arrays import Array

WIDTH, HEIGHT = 880, 416

GROUND, INK, MUTED, LINE = "#111417", "#e7eaee", "#a6afba", "#373d45"
"""Those of the report's page where it is dark."""

DEAD, LIVE, RESTING = COLORS[1], COLORS[0], "#dbe9f6"

SHADES = 20
"""Of each colour, on its way from the ground."""

MARGIN, CLOUD_MARGIN, WORDS_HEIGHT = 18, 9, 15
CLOUD_BOX, RADIUS_BOX = (0, 60, WIDTH, 221), (52, 304, WIDTH - 52 - 26, 88)
"""Left, top, width, height, in pixels. The words below the cloud are in its box, where no token is."""

TAIL_FRAMES = 3
"""How long the tails are that show where tokens come from."""

SMALL: dict[str, Any] = {"fontsize": 11, "color": MUTED}

EPOCH_WORDS = {
    "inhale": "They draw in: a little closer to zero.",
    "sneeze": "Flung out together, faster and faster.",
    "deceleration": "Slower and slower; one after the other comes to rest.",
    "re-expansion": "Faster once more.",
    "Fimbulwinter": "The long winter: hardly anything moves.",
}


@dataclass(frozen=True)
class Film:
    """What a film shows of a run."""

    cloud: Cloud
    """One frame for each picture."""

    steps_R: Array
    radius_R: Array
    """Mean distance of the dead tokens from zero, of every row."""

    live_radius_R: Array | None
    epochs: Sequence[Band]
    num_dead: int
    num_live: int

    rest_S: Array | None
    """For each dead token of the cloud the step of its last change of any bit; -1 if that is in the last row.
    None where it was not measured."""


def epoch_at(epochs: Sequence[Band], step: int) -> str:
    """Returns the epoch a step belongs to, "" if to none; the step of a boundary to the one that ends there.

    Example:
        >>> [epoch_at([("inhale", 0, 2), ("sneeze", 2, 24)], step) for step in (0, 2, 3, 25)]
        ['inhale', 'inhale', 'sneeze', '']
    """
    for name, first, last in epochs:
        if first < step <= last or step == first == epochs[0][1]:
            return name
    return ""


def film_frames(film: Film) -> Iterator[Array]:
    """Draws a film, frame by frame.

    Args:
        film: What to show.

    Yields:
        (H, W, 3) uint8.
    """
    with matplotlib.rc_context(dict(STYLE) | {"text.color": INK}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor=GROUND)
        canvas: Any = FigureCanvasAgg(figure)  # whose methods have no annotations
        scene = _Scene(film, figure)
        canvas.draw()
        background = canvas.copy_from_bbox(figure.bbox)
        for frame in range(len(film.cloud.steps_F)):
            canvas.restore_region(background)
            for artist in scene.moved_to(frame):
                figure.draw_artist(artist)
            yield np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def palette() -> Array:
    """Returns the colours of a film, (C, 3) uint8: each colour, and its way from the ground."""
    ground_3, *colors = (np.array(to_rgb(color)) for color in (GROUND, INK, MUTED, LINE, DEAD, LIVE, RESTING))
    shares = np.linspace(0, 1, SHADES + 1)[1:, None]
    mixed_C3 = np.concatenate([ground_3[None], *(ground_3 + shares * (color - ground_3) for color in colors)])
    return (mixed_C3 * 255).round().astype(np.uint8)


class _Scene:
    """The figure, and what moves in it."""

    def __init__(self, film: Film, figure: Figure) -> None:
        self.film, self.figure = film, figure
        self.steps_F = film.cloud.steps_F
        self._title()
        self._legend()
        self._cloud(_axes(figure, CLOUD_BOX))
        self._radius(_axes(figure, RADIUS_BOX))

    def moved_to(self, frame: int) -> list[Artist]:
        """Moves everything to a frame; returns what is to be drawn, in order."""
        step = int(self.steps_F[frame])
        epoch = epoch_at(self.film.epochs, step)
        self.epoch.set(text=epoch, color=RESTING if epoch == "Fimbulwinter" else DEAD)
        self.said.set_text(EPOCH_WORDS.get(epoch, ""))
        self.counter.set_text(f"step {step:,} of {int(self.steps_F[-1]):,}")
        self._move_cloud(frame, step)
        self._move_radius(step)
        return [
            *(self.epoch, self.said, self.counter, self.live, self.tails, self.dead, self.resting, self.mark),
            *(past for *_, past, _ in self.curves),
            *(now for *_, now in self.curves),
        ]

    def _title(self) -> None:
        words = f"{counted(self.film.num_dead, 'token')} that never occur in the text"
        title = self._text(MARGIN, 29, words, size=18, weight="bold")
        style = {"size": 18, "weight": "bold", "animated": True}
        self.epoch = self._text(_right(title) + 16, 29, "", **style)
        self.said = self._text(MARGIN, 51, "", size=14, color=MUTED, animated=True)
        self.counter = self._text(WIDTH - MARGIN, 29, "", ha="right", **style)

    def _legend(self) -> None:
        film, dead_S, right = self.film, self.film.cloud.dead_S, WIDTH - MARGIN
        names = [(RESTING, "at rest for good")] if film.rest_S is not None else []
        names += [(LIVE, "occur")] if (dead_S == 0).any() else []
        for color, name in (*names, (DEAD, "never occur")):
            text = self._text(right, 51, name, size=12, color=MUTED, ha="right")
            dot = self._text(_left(text) - 5, 51, "\u25cf", size=12, color=color, ha="right")
            right = int(_left(dot)) - 14
        shown = f"{np.count_nonzero(dead_S == 1):,} of {film.num_dead:,}"
        if (dead_S == 0).any():
            shown += f" and {np.count_nonzero(dead_S == 0):,} of {film.num_live:,}"
        where = f"along the principal axes of step {film.cloud.fitted_step:,}"
        self._text(
            *(MARGIN, CLOUD_BOX[1] + CLOUD_BOX[3] - 4, f"{shown} tokens {where}, {legend(film.cloud.label)}"),
            **SMALL,
        )

    def _text(self, x: float, y: float, words: str, **style: Any) -> Text:
        place = (x / WIDTH, 1 - y / HEIGHT)
        return self.figure.text(*place, words, va="baseline", **style)

    def _cloud(self, axes: Axes) -> None:
        low_2, high_2 = _corners(self.film.cloud.points_F3S[:, :2])
        (x, y), size_2 = (low_2 + high_2) / 2, np.array(CLOUD_BOX[2:])
        unit = max((high_2 - low_2) / (size_2 - 2 * CLOUD_MARGIN - (0, WORDS_HEIGHT))) or 1.0  # of a pixel
        width, height = unit * size_2
        y -= unit * WORDS_HEIGHT / 2
        axes.set(xlim=(x - width / 2, x + width / 2), ylim=(y - height / 2, y + height / 2))
        axes.axhline(0, color=LINE, linewidth=1)
        axes.axvline(0, 0.09, color=LINE, linewidth=1)  # not through the words below
        axes.annotate("zero", (0, 1), (4, -12), ("data", "axes fraction"), "offset points", **SMALL)
        self._scale_bar(axes, unit)
        style: dict[str, Any] = {"linewidths": 0, "animated": True}
        self.live = axes.scatter([], [], s=10, color=LIVE, alpha=0.9, **style)
        self.dead = axes.scatter([], [], s=12, color=DEAD, alpha=0.9, **style)
        self.resting = axes.scatter([], [], s=12, color=RESTING, alpha=0.9, **style)
        self.tails = LineCollection([], colors=DEAD, linewidths=0.9, alpha=0.45, animated=True)
        axes.add_collection(self.tails, autolim=False)

    def _scale_bar(self, axes: Axes, unit: float) -> None:
        """Draws a bar of length 1, 2 or 5 times a power of ten, 40 to 100 pixels long."""
        power = np.floor(np.log10(100 * unit))
        length = max(digit * 10**power for digit in (1, 2, 5) if digit * 10**power <= 100 * unit)
        right, y = axes.get_xlim()[1] - MARGIN * unit, axes.get_ylim()[0] + 8 * unit
        axes.plot([right - length, right], [y, y], color=MUTED, linewidth=1.5, solid_capstyle="butt")
        axes.annotate(
            f"{length:g}", (right - length / 2, y), (0, 4), textcoords="offset points", ha="center", **SMALL
        )

    def _move_cloud(self, frame: int, step: int) -> None:
        cloud, rest_S = self.film.cloud, self.film.rest_S
        dead_S, points_F2S = cloud.dead_S == 1, cloud.points_F3S[:, :2]
        rests_S = np.zeros(dead_S.sum(), bool) if rest_S is None else (rest_S >= 0) & (rest_S <= step)
        dead_2S = points_F2S[frame][:, dead_S]
        self.live.set_offsets(points_F2S[frame][:, cloud.dead_S == 0].T)
        self.dead.set_offsets(dead_2S[:, ~rests_S].T)
        self.resting.set_offsets(dead_2S[:, rests_S].T)
        tail_F2S = points_F2S[max(0, frame - TAIL_FRAMES) : frame + 1, :, dead_S]
        self.tails.set_segments(list(tail_F2S.transpose(2, 0, 1)))

    def _radius(self, axes: Axes) -> None:
        film, time_R = self.film, film_time(self.film.steps_R)
        self.time_R = time_R
        both = [film.radius_R] if film.live_radius_R is None else [film.live_radius_R, film.radius_R]
        values = np.concatenate(both)
        low, high = np.nanmin(values), np.nanmax(values)
        room = (high - low or 1.0) * 0.14
        axes.set(xlim=(0, 1), ylim=(low - room, high + room))
        lines = list(zip(both, (DEAD,) if len(both) == 1 else (LIVE, DEAD), strict=True))
        if (enlarged_R := self._enlarged(axes, time_R)) is not None:
            lines.append((enlarged_R, DEAD))
        self.curves = []
        for radius_R, color in lines:
            rows = np.union1d(thinned(radius_R), film_rows(film.steps_R))  # of a million all would take long
            axes.plot(time_R[rows], radius_R[rows], color=color, linewidth=1.2, alpha=0.5)
            (past,) = axes.plot([], [], color=color, linewidth=2.2, animated=True)
            (now,) = axes.plot([], [], "o", color=color, markersize=6.5, animated=True, clip_on=False)
            self.curves.append((rows, radius_R[rows], past, now))
        self.mark = axes.axvline(0, color=INK, linewidth=1, animated=True)
        self._ticks(axes)
        self._epochs(axes)

    def _enlarged(self, axes: Axes, time_R: Array) -> Array | None:
        """Marks where the inhale, too small to be seen, is drawn once more, enlarged; returns that curve."""
        inhale = next((last for name, _, last in self.film.epochs if name == "inhale"), None)
        low, high = axes.get_ylim()
        radius_R = self.film.radius_R
        if inhale is None:
            return None
        depth = radius_R[0] - radius_R[self.film.steps_R <= inhale].min()
        if not 0 < depth < (high - low) / 10:
            return None
        times = float(f"{(high - low) * 0.2 / depth:.0e}")
        level = low + (high - low) * 0.6
        begun_R = np.logical_and.accumulate(radius_R - radius_R[0] < depth)
        end = time_R[begun_R][-1]
        axes.plot([0, end], [level, level], color=MUTED, linewidth=0.8, dashes=(3, 3))
        axes.annotate(
            f"the same, enlarged {times:,.0f} times",
            *((end, level), (8, -4)),
            textcoords="offset points",
            **SMALL,
        )
        return np.where(begun_R, level + times * (radius_R - radius_R[0]), np.nan)

    def _ticks(self, axes: Axes) -> None:
        first, last = (int(step) for step in self.film.steps_R[[0, -1]])
        marks = [digit * 10**power for power in range(len(str(last))) for digit in (1, 2, 5)]
        marks = [0, *(mark for mark in marks if mark <= last - first)]
        places = np.log1p(marks) / np.log1p(last - first)
        axes.set_xticks(places, [f"{first + mark:,}" for mark in marks])
        ends = self.film.radius_R[np.isfinite(self.film.radius_R)][[0, -1]]
        axes.set_yticks(ends, [f"{end:.2g}" for end in ends])
        axes.tick_params(labelsize=11, labelcolor=MUTED, color=LINE, length=3)
        left, top, _, height = RADIUS_BOX
        self._text(left + 6, top + 16, "mean distance from zero", size=12, color=MUTED)
        self._text(MARGIN, top + height + 14, "step", **SMALL)

    def _epochs(self, axes: Axes) -> None:
        ends = self.film.steps_R[[0, -1]]
        for number, (name, first, last) in enumerate(self.film.epochs):
            _, low, high, _ = film_time(np.array([ends[0], first, last, ends[1]]))
            if number % 2 == 0:
                axes.axvspan(low, high, color=INK, alpha=0.06, linewidth=0, zorder=0)
            x = RADIUS_BOX[0] + RADIUS_BOX[2] * (low + high) / 2
            text = self._text(x, RADIUS_BOX[1] - 5, name, size=12, color=MUTED, ha="center")
            if _right(text) - _left(text) > RADIUS_BOX[2] * (high - low):
                text.remove()  # it has no place; the title names it

    def _move_radius(self, step: int) -> None:
        row = int(np.searchsorted(self.film.steps_R, step))
        for rows, radius_K, past, now in self.curves:
            count = int(np.searchsorted(rows, row)) + 1
            past.set_data(self.time_R[rows[:count]], radius_K[:count])
            now.set_data([self.time_R[row]], radius_K[count - 1 : count])
        self.mark.set_xdata([self.time_R[row]] * 2)


def _corners(points_F2S: Array) -> tuple[Array, Array]:
    """Returns the least and the largest coordinates of all finite points."""
    points = points_F2S.astype(np.float64).transpose(1, 0, 2).reshape(2, -1)
    points = points[:, np.isfinite(points).all(axis=0)]
    return points.min(axis=1), points.max(axis=1)


def _left(text: Text) -> float:
    return float(text.get_window_extent().x0)


def _right(text: Text) -> float:
    return float(text.get_window_extent().x1)


def _axes(figure: Figure, box: tuple[int, int, int, int]) -> Axes:
    left, top, width, height = box
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes
