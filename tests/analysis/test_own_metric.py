"""A metric of one's own: measured, in the tables, drawn, logged; beside float64 numpy."""

import csv
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.metrics import Drawn, RowMetric
from flannel_pl.metrics.row_metrics import Moment
from tests.analysis.samples import save_recording, walk

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_metric"

rounded = RowMetric(lambda tokens: 1.0, "of bits", of_bits=True, drawn=Drawn("Bits", "bits", "x", "y"))
step = RowMetric(lambda tokens: 1.0, "a name that a column of the tables has")
speed = RowMetric(lambda tokens: 1.0, "a name that is taken")
number = 3

ELSEWHERE = {"value": 1.0}
elsewhere = RowMetric(lambda tokens: ELSEWHERE["value"], "depends on more than its code")
failing = RowMetric(lambda tokens: ELSEWHERE["x"], "fails")
leaving = RowMetric(lambda tokens: sys.exit(4), "ends the process")
motion = RowMetric(
    lambda tokens: float(tokens.dW_SD.max()), "compares with the row before and does not say so"
)
none: RowMetric = RowMetric(lambda tokens: None, "returns nothing")  # type: ignore[arg-type, return-value]
text: RowMetric = RowMetric(lambda tokens: "3", "returns a text")  # type: ignore[arg-type, return-value]
several: RowMetric = RowMetric(lambda tokens: np.ones(2), "returns two")  # type: ignore[arg-type, return-value]
complex_one: RowMetric = RowMetric(lambda tokens: 1j, "returns another")  # type: ignore[arg-type, return-value]


def sort(tokens: Moment) -> float:
    tokens.W_SD.sort(axis=0)
    return 1.0


def fill(tokens: Moment) -> float:
    tokens.before_SD.fill(0)
    return 1.0


writing = RowMetric(sort, "sorts what others see")
filling = RowMetric(fill, "fills what others see", of_motion=True)


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(EXAMPLE)
    runs = [walk(seed) for seed in (1, 2)]
    return save_recording(tmp_path / "x.safetensors", runs)


def alignments(W_RVD: Any) -> list[float]:
    """What the example measures, in plain numpy."""
    found = [float("nan")]
    for before, after in itertools.pairwise(W_RVD):
        steps = (after - before).astype(np.float64)
        centre = steps.mean(axis=0)
        cosines = [
            step @ centre / np.linalg.norm(step) / np.linalg.norm(centre) for step in steps if step.any()
        ]
        found.append(float(np.mean(cosines)) if cosines else float("nan"))
    return found


def test_it_is_in_tables_and_has_a_figure(recording: Path, tmp_path: Path) -> None:
    words = ["report", str(recording), "--out", str(tmp_path / "out"), "--metrics", "[alignment.alignment]"]
    assert main(words) == 0
    assert (tmp_path / "out" / "figures" / "alignment.svg").stat().st_size > 5000
    page = (tmp_path / "out" / "index.html").read_text()
    assert "they move as one body" in page
    with (tmp_path / "out" / "metrics.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if (line["run"], line["set"]) == ("0", "all")]
    with flannel_pl.open_recording(recording) as opened:
        expected = alignments(opened.run(0).embeddings[:].astype(np.float64))
    got = [float(line["alignment"] or "nan") for line in lines]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    plain = ["report", str(recording), "--out", str(tmp_path / "plain")]
    assert main(plain) == 0
    assert "alignment" not in (tmp_path / "plain" / "metrics.csv").read_text()
    assert not (tmp_path / "plain" / "figures" / "alignment.svg").exists()


@pytest.mark.usefixtures("one_picture")
def test_it_is_measured_anew_since_it_may_depend_on_anything(recording: Path, tmp_path: Path) -> None:
    def values(name: str) -> set[str]:
        flannel_pl.report(recording, out=tmp_path / "a", metrics=[f"tests.analysis.test_own_metric.{name}"])
        with (tmp_path / "a" / "metrics.csv").open() as file:
            return {line[name] for line in csv.DictReader(file)}

    assert values("elsewhere") == {"1"}
    ELSEWHERE["value"] = 2.0
    assert values("elsewhere") == {"2"}
    assert flannel_pl.report(recording, out=tmp_path / "a").measured_bytes > 0
    assert "elsewhere" not in (tmp_path / "a" / "metrics.csv").read_text()
    assert flannel_pl.report(recording, out=tmp_path / "a").measured_bytes == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("leaving", r"the metric leaving failed with SystemExit: 4 \(.*test_own_metric\.py, line \d+\)"),
        (
            "motion",
            r"failed with ValueError: there is no row before; .*of_motion=True\) \(.*own_metric\.py, li",
        ),
        ("failing", r"the metric failing failed with KeyError: 'x' \(.*test_own_metric\.py, line \d+\)"),
        ("none", r"the metric none has measured None, expected one number"),
        ("text", r"the metric text has measured '3', expected one number"),
        ("several", r"the metric several has measured ndarray of shape \(2,\), expected one number"),
        ("complex_one", r"the metric complex_one has measured 1j, expected one number"),
        ("writing", r"the metric writing failed with ValueError: .*read-only \(.*, line \d+\)"),
        ("filling", r"the metric filling failed with ValueError: .*read-only \(.*, line \d+\)"),
    ],
)
def test_one_that_fails_is_told_by_name(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    words = ["report", str(recording), "--out", str(tmp_path / "out")]
    assert main([*words, "--metrics", f"[tests.analysis.test_own_metric.{name}]"]) == 2
    assert re.search(sentence, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "alignmint.alignment",
            r"'alignmint\.alignment', expected the import path .*No module named",
        ),
        ("alignment.nothing", r"--metrics has 'alignment\.nothing', expected .* has no attribute 'nothing'"),
        ("tests.analysis.test_own_metric.number", r"which is a int, expected the import path of a Ro"),
        ("tests.analysis.test_own_metric.speed", r"speed', but speed is one of flannel-pl's own; give yours"),
        ("tests.analysis.test_own_metric.step", r"--metrics has step, which every report has; give yours an"),
        ("alinement", r"--metrics has 'alinement', expected the import path of a RowMetric, e\.g\. my_lab"),
        ("token_speed", r"--metrics has token_speed, which every report has; leave it out"),
    ],
)
def test_what_is_none_is_refused(recording: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        flannel_pl.report(recording, metrics=[name])


def test_twice_the_same_name(recording: Path) -> None:
    with pytest.raises(UserError, match="--metrics has two metrics alignment; give one of them another name"):
        flannel_pl.report(recording, metrics=["alignment.alignment", "alignment.alignment"])
