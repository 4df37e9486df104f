import time
from pathlib import Path

import pytest

from flannel_pl.launch.signs import silence_s


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed; the only element."""
    passed, began_s, monotonic_s = [0.0], time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: began_s + passed[0])
    monkeypatch.setattr(time, "monotonic", lambda: monotonic_s + passed[0])
    return passed


@pytest.mark.parametrize("ahead_s", [-3600.0, -90.0, 0.0, 90.0, 3600.0])
def test_who_watches_is_not_misled_by_another_clock(
    tmp_path: Path, pass_time: list[float], ahead_s: float
) -> None:
    host_s = time.time() + ahead_s  # by the clock of the host that gives the signs
    first_s = silence_s(tmp_path, host_s)
    assert first_s == pytest.approx(max(0.0, -ahead_s))
    for beat in range(1, 4):
        pass_time[0] += 5
        assert silence_s(tmp_path, host_s + 5 * beat) == 0
        pass_time[0] += 2
        assert silence_s(tmp_path, host_s + 5 * beat) == pytest.approx(2)
    pass_time[0] += 100
    assert silence_s(tmp_path, host_s + 15) == pytest.approx(102)


def test_one_that_died_before_the_first_look_is_found_out_while_it_is_watched(
    tmp_path: Path, pass_time: list[float]
) -> None:
    ahead_s = time.time() + 3600
    assert silence_s(tmp_path, ahead_s) == 0
    pass_time[0] += 61
    assert silence_s(tmp_path, ahead_s) == pytest.approx(61)


def test_an_older_sign_is_no_new_one(tmp_path: Path, pass_time: list[float]) -> None:
    assert silence_s(tmp_path, time.time()) == 0
    assert silence_s(tmp_path, time.time() - 100) == pytest.approx(100)
