import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flannel_pl.recording.formats.schema import ALL_NAMES
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.reader import open_recording
from tests.recording.recording_samples import make_experiment

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = make_experiment(tmp_path_factory.mktemp("runs") / "flannel3", gather="index")
    gather(paths.folder)
    gather(paths.folder, mode="single")
    return paths.folder


def run_example(number: int) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(EXAMPLES[number], names)
    return names


def test_the_examples_do_what_they_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with open_recording(folder) as recording:
        dead = recording.masks["dead_indices"]
        whole = recording.run(1).embeddings[:]
        embeddings = whole[:, dead]
        losses = recording.run(1).losses_f32[:]
    assert run_example(0)["embeddings"].tobytes() == embeddings[3].tobytes()
    assert [run["seed"] for run in run_example(1)["metadata"]["runs"]] == [42, 43, 44]
    assert run_example(2)["losses"].tolist() == losses.tolist()
    assert run_example(3)["row"].tolist() == [3]
    assert run_example(4)["embeddings"].tobytes() == embeddings[3:6].tobytes()
    with np.errstate(all="ignore"):  # some of the random bits are infinite
        means = run_example(5)["means"]
        assert means.tobytes() == whole.astype(np.float64).mean(axis=1).tobytes()
    assert len(EXAMPLES) == 6


def test_every_tensor_is_on_the_page() -> None:
    assert [name for name in ALL_NAMES if f"`{name}`" not in PAGE] == []
