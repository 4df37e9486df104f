"""A metric of one's own: measured, in the tables, drawn, logged; beside float64 numpy."""

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.metrics import Drawn, RowMetric
from tests.analysis.samples import save_recording, walk

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_metric"

rounded = RowMetric(lambda tokens: 1.0, "of bits", of_bits=True, drawn=Drawn("Bits", "bits", "x", "y"))
speed = RowMetric(lambda tokens: 1.0, "a name that is taken")
number = 3


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


def test_what_was_measured_is_kept_until_the_code_changes(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from flannel_pl.metrics import RowMetric\nmine = RowMetric(lambda tokens: VALUE, 'mine')\n"
    (tmp_path / "my_lab_once.py").write_text(code.replace("VALUE", "1.0"))
    monkeypatch.syspath_prepend(tmp_path)
    first = flannel_pl.report(recording, out=tmp_path / "a", metrics=["my_lab_once.mine"])
    again = flannel_pl.report(recording, out=tmp_path / "a", metrics=["my_lab_once.mine"])
    assert first.measured_bytes > 0 == again.measured_bytes
    (tmp_path / "my_lab_once.py").write_text(code.replace("VALUE", "2.0"))
    changed = flannel_pl.report(recording, out=tmp_path / "a", metrics=["my_lab_once.mine"])
    assert changed.measured_bytes > 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("alignmint.alignment", r"--metrics has 'alignmint\.alignment', expected some of .*No module named"),
        ("alignment.nothing", r"--metrics has 'alignment\.nothing', expected .* has no attribute 'nothing'"),
        ("tests.analysis.test_own_metric.number", r"which is a int, expected some of origin_radius,"),
        ("tests.analysis.test_own_metric.speed", r"--metrics has speed, which every report has"),
        ("token_speed", r"--metrics has 'token_speed', expected some of origin_radius"),
    ],
)
def test_what_is_none_is_refused(recording: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        flannel_pl.report(recording, metrics=[name])


def test_twice_the_same_name(recording: Path) -> None:
    with pytest.raises(UserError, match="--metrics has two metrics alignment; give one of them another name"):
        flannel_pl.report(recording, metrics=["alignment.alignment", "alignment.alignment"])
