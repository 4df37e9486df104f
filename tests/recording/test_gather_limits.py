"""What cannot be gathered is refused before anything is trained, by the very header that it would have."""

from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.recording.formats.metadata import num_marks
from flannel_pl.recording.formats.safetensors import layout
from flannel_pl.recording.formats.safetensors.layout import FileLayout, read_layout
from flannel_pl.recording.gathering import limits as gather_limits
from flannel_pl.recording.gathering.limits import _planned
from tests.conftest import SmallData


def words(data: SmallData, folder: Path, *more: str) -> list[str]:
    settings = ["--trainer.max_steps", "3", "--launch.threads_per_run", "1", "--experiment.name", "many"]
    return [*data.arguments, *settings, "--experiment.output_dir", str(folder), *more]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[FileLayout]:
    """Collects the layouts that are planned."""
    found: list[FileLayout] = []

    def note(*arguments: Any) -> FileLayout:
        found.append(_planned(*arguments))
        return found[-1]

    monkeypatch.setattr(gather_limits, "_planned", note)
    return found


@pytest.mark.parametrize("gather", ["single", "index"])
@pytest.mark.parametrize(
    "more",
    [
        ["--experiment.seeds", "1..2"],
        ["--recorder.tokens", "dead", "--recorder.tensors", "[grads, losses]", "--experiment.seeds", "7"],
        ["--experiment.sweep", "{trainer.max_steps: [2, 5]}", "--experiment.seeds", "7"],
    ],
    ids=["seeds", "few tokens", "sweep"],
)
def test_the_header_is_planned_as_it_is_going_to_be(
    small_data: SmallData, tmp_path: Path, planned: list[FileLayout], gather: str, more: list[str]
) -> None:
    for run in range(1 if more[-1] == "7" and "sweep" not in more[0] else 2):
        alone = ["--experiment.run", str(run), "--experiment.gather", gather]
        assert main(["fit", *words(small_data, tmp_path, *more, *alone)]) == 0
    assert not planned
    assert main(["plan", *words(small_data, tmp_path / "new", *more, "--experiment.gather", gather)]) == 0
    assert main(["gather", str(tmp_path / "many")]) == 0
    name = "many.safetensors" if gather == "single" else "many.extras.safetensors"
    there = read_layout(tmp_path / "many" / name)
    assert planned[0].tensors == there.tensors
    # A command and a device have other names; what is listed is the same.
    assert abs(num_marks(planned[0].header) - num_marks(there.header)) < 100


@pytest.mark.parametrize("verb", ["plan", "fit"])
@pytest.mark.parametrize(
    ("gather", "seeds", "said"),
    [
        ("single", "1..3000", "3000 runs are too many for one file, whose header no reader would accept"),
        ("single", "1..5000", "--experiment.gather index copies nothing, --experiment.gather none leaves"),
        ("index", "1..9000", "9000 runs are too many for an index"),
    ],
)
def test_too_many_runs(
    small_data: SmallData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    gather: str,
    seeds: str,
    said: str,
) -> None:
    many = ["--experiment.gather", gather, "--experiment.seeds", seeds]
    assert main([verb, *words(small_data, tmp_path / "runs", *many)]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "Nothing is trained" in complaint
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("gather", "seeds"), [("none", "1..9000"), ("index", "1..2500"), ("single", "1..900")]
)
def test_not_too_many(small_data: SmallData, tmp_path: Path, gather: str, seeds: str) -> None:
    assert (
        main(
            ["plan", *words(small_data, tmp_path), "--experiment.gather", gather, "--experiment.seeds", seeds]
        )
        == 0
    )


@pytest.mark.parametrize("limit", ["MAX_TENSORS", "MAX_MARKS", "MAX_HEADER_BYTES"])
def test_every_limit_counts(
    small_data: SmallData,
    tmp_path: Path,
    planned: list[FileLayout],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    command = ["plan", *words(small_data, tmp_path, "--experiment.seeds", "1..3")]
    assert main(command) == 0
    header = planned[0].header
    sizes = {
        "MAX_TENSORS": len(planned[0].tensors),
        "MAX_MARKS": num_marks(header),
        "MAX_HEADER_BYTES": len(header),
    }
    monkeypatch.setattr(layout, limit, sizes[limit])
    assert main(command) == 0
    monkeypatch.setattr(layout, limit, sizes[limit] - 1)
    assert main(command) == 2
