"""The verb compare as a user meets it: words, exit codes, plot."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flannel_pl.__main__ import main
from flannel_pl.analysis.comparing.compare import compare
from flannel_pl.analysis.comparing.plot import draw
from tests.analysis.compare_samples import copy, flip, put, read, record
from tests.mounting import mounted, read_only
from tests.recording.recording_samples import make_experiment


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int) -> list[str]:
    """Runs compare and returns its lines, with single spaces; of an error the one line of that."""
    assert main(["compare", *map(str, words)]) == code
    printed = capsys.readouterr()
    assert bool(printed.err) == (code == 2)
    return [" ".join(line.split()) for line in (printed.out + printed.err).splitlines()]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal recordings."""
    a = record(tmp_path / "run_0")
    return a, copy(a, "b")


def test_equal_recordings(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, *pair, code=0)
    assert lines[:5] == [
        f"A {pair[0]}",
        f"B {pair[1]}",
        "",
        "run 0 (seed 42): 7 rows (steps 0 to 6), 30 tokens",
        "equal recorded_steps, logits, losses_f32, losses, grads, grad_norms, learning_rates, momentum, "
        "variance, embeddings, checksums",
    ]
    assert re.fullmatch(r"equal to the bit \(1 run compared in \d+\.\d s\)", lines[-1])
    assert len(lines) == 6


def test_a_difference_is_named_with_its_place_its_values_and_its_size(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for path, value in zip(pair, (1.0, 1.0078125), strict=True):
        put(path, "embeddings", (3, 17, 2), value)
    put(pair[0], "embeddings", (6, 0, 0), 0.0)
    put(pair[1], "embeddings", (6, 0, 0), -0.25)
    lines = said(capsys, *pair, code=1)
    at = lines.index("embeddings 2 of 840 elements differ")
    assert lines[at + 1 : at + 4] == [
        "first: step 3 (row 3), token 17, dimension 2: 1.0 (0x3f80) in A and 1.0078125 (0x3f81) in B, 1 ULP",
        "apart: 16,000 ULP at most",
        "Frobenius distance: 0.25 at most, 0.25 in the last row",
    ]
    assert lines[-1].startswith("different: first at step 3, in embeddings (1 run compared in ")


def test_numbers_are_given_to_the_last_bit(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for path, value in zip(pair, (0.1, np.nextafter(np.float32(0.1), np.float32(1))), strict=True):
        put(path, "losses_f32", (2,), float(value))
    flip(pair[1], "recorded_steps", (6,), bit=3)
    flip(pair[1], "checksums", (4, 1))
    lines = said(capsys, *pair, code=1)
    numbers = "0.10000000149011612 (0x3dcccccd) in A and 0.10000000894069672 (0x3dccccce) in B, 1 ULP"
    assert f"first: step 2 (row 2): {numbers}" in lines
    assert "first: step 6 (row 6): 6 in A and 14 in B" in lines
    assert any(line.startswith("first: step 4 (row 4), of embeddings: ") for line in lines)


def test_a_nan_on_one_side_is_said(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path, value in zip(pair, (1.0, np.nan), strict=True):
        put(path, "grads", (6, 1, 1), value)
        put(path, "grad_norms", (5,), value)
        put(path, "grad_norms", (4,), value + 1)
    lines = said(capsys, *pair, code=1)
    at = lines.index("grads 1 of 840 elements differ")
    assert "1.0 (0x3f80) in A and nan (0x7fc0) in B" in lines[at + 1]
    assert lines[at + 2] == "apart: none to measure; 1 have a NaN"
    assert lines[at + 3] == "Frobenius distance: NaN in 1 row, 0 in the others"
    put(pair[1], "grads", (2, 1, 1), read(pair[0], "grads")[2, 1, 1] + 0.5)
    (distance,) = [line for line in said(capsys, *pair, code=1)[at:] if line.startswith("Frobenius")][:1]
    assert re.fullmatch(r"Frobenius distance: 0\.\d+ at most, NaN in the last row; NaN in 1 row", distance)


def test_what_only_one_has_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = record(tmp_path / "a", max_steps=4)
    b = record(tmp_path / "b", tensors=["embeddings"], dtypes={"embeddings": "float32"}, tokens=[1, 2, 40])
    lines = said(capsys, a, b, code=1)
    assert "run 0 (seed 42): 5 rows (steps 0 to 4), 2 tokens" in lines
    assert "only in A grads, logits, losses, momentum, variance; 28 tokens" in lines
    assert "not compared checksums: they are of all tokens of a row" in lines
    assert "only in B 2 rows (steps 5 to 6); 1 token" in lines
    assert any(
        re.fullmatch(
            r"embeddings \d+ of 40 elements differ; it is bfloat16 in A and float32 in B, both compared as "
            "float32",
            line,
        )
        for line in lines
    )
    c = record(tmp_path / "c", hidden_dim=5)
    lines = said(capsys, a, c, code=1)
    assert "embeddings cannot be compared: a row has the shape (30, 4) in A and (30, 5) in B" in lines


def test_equal_as_far_as_both_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, record(tmp_path / "a"), record(tmp_path / "b", max_steps=5), code=1)
    assert "only in A 1 row (step 6)" in lines
    assert lines[-1].startswith(
        "different: not everything is in both, but what both have is equal to the bit (1 run compared in "
    )


def test_several_runs_and_why_they_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_experiment(tmp_path / "a" / "flannel3", num_runs=2)
    b = make_experiment(tmp_path / "b" / "flannel3", num_runs=3)
    lines = said(capsys, a.folder, b.folder, code=1)
    assert "only B has run 2" in lines
    lines = said(capsys, a.folder, b.folder, "--runs", "0:0, 0:2", code=1)
    assert "run 0 of A and run 2 of B (seeds 42 and 44): 7 rows (steps 0 to 6), 30 tokens" in lines
    at = lines.index("what else differs")
    assert lines[at + 1] == "seed: 42 in A, 44 in B"
    verdict = (
        "different: 1 of them different, first at step 0, in logits of run 0 of A and run 2 of B (2 runs"
    )
    assert lines[-1].startswith(verdict)
    said(capsys, a.folder, b.folder, "--runs=1:1", code=0)


def test_equal_though_recorded_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (
        record(tmp_path / str(threads), metadata={"provenance": {"threads": threads}}) for threads in (1, 2)
    )
    lines = said(capsys, a, b, code=0)
    at = lines.index("what differs, though no bit does")
    assert lines[at + 1] == "threads: 1 in A, 2 in B"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--runs", "0-3"],
            "--runs is '0-3', expected a run of A and one of B, e.g. 0:3, or several: 0:3,1:4",
        ),
        (["--runs", "0:0,1"], "--runs is '0:0,1', expected a run of A and one of B"),
        (["--runs", "0:5"], "B has no run 5; "),
        (["--plot", "x.pdf"], "--plot is x.pdf, expected a file that ends in .png or .svg"),
        (["--plot", "no/x.png"], "--plot is no/x.png, but there is no folder "),
        (["--runs", ""], "--runs is '', expected a run of A and one of B, e.g. 0:3, or several: 0:3,1:4"),
        (["--plot", "folder.png"], "--plot is folder.png, which is a folder; expected a file in it"),
        (["--bits"], "see flannel-pl compare --help"),
    ],
)
def test_wrong_usage(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    folder = Path("folder.png")
    folder.mkdir()
    (line,) = said(capsys, *pair, *words, code=2)
    folder.rmdir()
    assert message in line


def test_a_plot_on_a_read_only_disk(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    with read_only(tmp_path / "disk"):
        (line,) = said(capsys, *pair, "--plot", tmp_path / "disk" / "plot.png", code=2)
    assert "cannot be written: no permission, or a read-only disk; choose another folder" in line


def test_a_plot_that_fails_does_not_hide_what_was_found(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4096", "tmpfs"):  # full at once
        assert main(["compare", *map(str, pair), "--plot", str(tmp_path / "disk" / "plot.png")]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].startswith("equal to the bit")
    assert re.search(r"No space left on device\. .* Free some space, or write to another disk", output.err)


def test_one_recording_is_too_few(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(capsys, pair[0], code=2)
    assert "required: b" in line
    (line,) = said(capsys, pair[0], "nowhere", code=2)
    assert line.startswith("flannel-pl: error: There is no nowhere; expected a recording")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_written(
    pair: tuple[Path, Path], weird_tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    flip(pair[1], "grads", (3, 0, 0), bit=7)
    path = weird_tmp_path / f"plot.{suffix}"
    assert main(["compare", *map(str, pair), "--plot", str(path)]) == 1
    assert f"plot: {path}" in capsys.readouterr().out
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    main(["compare", *map(str, pair), "--plot", str(path)])
    assert path.read_bytes() == content


def test_the_plot_shows_the_distances(pair: tuple[Path, Path]) -> None:
    for row in (1, 2, 5):
        put(pair[0], "embeddings", (row, 3, 1), float(row))
        put(pair[1], "embeddings", (row, 3, 1), float(row) / 2)
    flip(pair[1], "checksums", (0, 0))
    (axes,) = draw(compare(*pair)).axes
    line, points = axes.get_lines()
    expected = [np.nan, 0.5, 1.0, np.nan, np.nan, 2.5, np.nan]
    np.testing.assert_array_equal(np.asarray(line.get_ydata(), float), expected)
    assert np.asarray(points.get_xdata()).tolist() == [5]  # a line between two rows hides a row alone
    assert (axes.get_ylabel(), axes.get_yscale()) == ("embeddings", "log")
    low, high = axes.get_xlim()
    assert low < 0
    assert high > 6


def test_the_plot_marks_rows_without_a_distance(pair: tuple[Path, Path]) -> None:
    put(pair[0], "embeddings", (1, 3, 1), 1.0)
    put(pair[1], "embeddings", (1, 3, 1), 2.0)
    put(pair[1], "embeddings", (4, 3, 1), np.nan)
    put(pair[1], "grads", (2, 0, 0), np.inf)
    for path, zero in zip(pair, (0.0, -0.0), strict=True):
        put(path, "variance", (3, 0, 0), zero)
    panels = {axes.get_ylabel(): axes for axes in draw(compare(*pair)).axes}
    notes = {name: axes.get_title(loc="right") for name, axes in panels.items()}
    assert notes == {
        "embeddings": "x: infinite or NaN",
        "grads": "x: infinite or NaN",
        "variance": "every distance is 0: 0.0 and -0.0 differ in their bits alone",
    }
    for name, step in (("embeddings", 4), ("grads", 2)):
        crosses = panels[name].get_lines()[-1]
        assert (np.asarray(crosses.get_xdata()).tolist(), crosses.get_marker()) == ([step], "x")
    assert [axes.get_yscale() for axes in panels.values()].count("log") == 1


def test_the_plot_of_what_cannot_be_compared_says_so(tmp_path: Path) -> None:
    a, b = record(tmp_path / "a", tensors=["losses"]), record(tmp_path / "b", tensors=["losses"])
    tensors = load_file(b)
    save_file(tensors | {"losses_f32": tensors["losses_f32"][:, None]}, b)
    figure = draw(compare(a, b))
    title = " ".join(figure.get_suptitle().split())
    assert title == "There is no distance: what can be compared is equal"


def test_the_plot_of_equal_recordings_says_so(pair: tuple[Path, Path]) -> None:
    figure = draw(compare(*pair))
    assert " ".join(figure.get_suptitle().split()) == "A and B are equal in every row of every float"


def test_the_plot_of_several_runs_has_a_legend(tmp_path: Path) -> None:
    a, b = (make_experiment(tmp_path / name / "flannel3", num_runs=2) for name in "ab")
    figure = draw(compare(a.folder, b.folder, runs=[(0, 1), (1, 0)]))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["run 0 and run 1", "run 1 and run 0"]
