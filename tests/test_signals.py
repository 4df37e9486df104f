"""Who takes which signal: what was ignored at the start stays ignored, the rest ends things in order."""

import os
import signal
from collections.abc import Iterator

import pytest

from flannel_pl.signals import SCHEDULER_SIGNALS, STOP_SIGNALS, handled, heeded_signals, stop_signal


@pytest.fixture
def ignored(request: pytest.FixtureRequest) -> Iterator[set[signal.Signals]]:
    numbers: set[signal.Signals] = set(request.param)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    yield numbers
    for number, handler in previous.items():
        signal.signal(number, handler)


SOME = [(), (signal.SIGHUP,), (signal.SIGINT,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGUSR1)]


@pytest.mark.parametrize("ignored", [*SOME, STOP_SIGNALS], indirect=True)
def test_what_is_ignored_stays_ignored(ignored: set[signal.Signals]) -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    caught: list[int] = []
    with handled(lambda number, frame: caught.append(number)):
        assert set(heeded_signals()) == set(STOP_SIGNALS) - ignored
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
    assert caught == [number for number in STOP_SIGNALS if number not in ignored]
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


@pytest.mark.parametrize("ignored", SOME, indirect=True)
def test_a_process_that_ignores_the_same_can_be_told_to_stop(ignored: set[signal.Signals]) -> None:
    assert stop_signal() not in ignored
    assert stop_signal() == signal.SIGTERM or signal.SIGTERM in ignored


def test_what_was_heeded_before_somebody_else_took_the_signals() -> None:
    caught: list[int] = []
    with (
        handled(lambda number, frame: pytest.fail("the inner one has it")),
        handled(lambda number, frame: caught.append(number), heeded=[signal.SIGTERM]),
    ):
        for number in SCHEDULER_SIGNALS:
            os.kill(os.getpid(), number)
    assert caught == [signal.SIGTERM]
