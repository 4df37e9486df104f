"""No JSON and no header, whatever it says, ends a verb in anything but an answer: see `mutating.faults`."""

from pathlib import Path

import pytest

from tests.conftest import SmallData
from tests.mutating import Original, originals

STATES = ("gathered", "growing", "index", "stopped")


@pytest.fixture(scope="module")
def made(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Original]:
    made = originals(small_data.arguments, tmp_path_factory.mktemp("originals"))
    return {original.folder.name: original for original in made}


@pytest.mark.parametrize("state", STATES)
def test_some_mutations(made: dict[str, Original], tmp_path: Path, state: str) -> None:
    assert made[state].attack(tmp_path, seed=0, number=25, slow_verbs=False) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("state", STATES)
def test_two_thousand_mutations(made: dict[str, Original], tmp_path: Path, state: str, seed: int) -> None:
    assert made[state].attack(tmp_path, seed=seed, number=250) == []
