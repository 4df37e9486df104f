"""No slot idles while a run waits, and side by side is faster; both told from event logs alone."""

import statistics
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.launch.devices import num_cores
from flannel_pl.launch.events import read_events
from tests.conftest import SmallData

LONGEST_GAP_S = 1.0
"""What a start may take: some hundredths of a second, and more on a busy machine."""

NUM_PAIRS = 3
"""Of the two ways in turn, so that both meet the same moods of the machine."""

NOTEBOOK = Path(__file__).parents[2] / "configs" / "flannel3.yaml"

Event = dict[str, Any]


def gaps_s(events: list[Event], *, num_runs: int, num_slots: int) -> list[float]:
    """Returns how long a slot was free each time a run waited for one, in seconds.

    All slots count as free from the first start on: what comes before it is imports, not scheduling. Events
    do not tell the slots of one device apart, so the slot that has been free longest takes the next run.

    Args:
        events: Those of one launch; the last one tells until when a run waited that was never started.
        num_runs: Runs that wait at the beginning.
        num_slots: Runs that can be under way at once.

    Raises:
        AssertionError: If more than that were under way at once.
    """
    relevant = [event for event in events if event["event"] in ("run_started", "run_finished", "run_failed")]
    free_since_s = deque([relevant[0]["monotonic_s"]] * num_slots)
    num_waiting, gaps = num_runs, []
    for event in relevant:
        now_s = event["monotonic_s"]
        if event["event"] == "run_started":
            assert free_since_s, f"run {event['run']} is one more than there are slots"
            gaps.append(now_s - free_since_s.popleft())
            num_waiting -= 1
        else:
            free_since_s.append(now_s)
            num_waiting += event.get("will_retry", False)
    # Runs that nobody ever started waited to the end of the log.
    still_free = list(free_since_s)[:num_waiting]
    return gaps + [events[-1]["monotonic_s"] - free_s for free_s in still_free]


def log(*lines: tuple[float, str, int]) -> list[Event]:
    """Returns a made-up event log of (second, event, run)."""
    return [{"monotonic_s": second, "event": event, "run": run} for second, event, run in lines]


def test_a_gap_is_seen() -> None:
    started, finished = "run_started", "run_finished"
    begin = [(10.0, "launch_started", -1), (15.0, started, 0), (15.1, started, 1)]
    prompt = log(*begin, (16.0, finished, 1), (16.1, started, 2), (17.0, finished, 0), (17.9, finished, 2))
    assert gaps_s(prompt, num_runs=3, num_slots=2) == pytest.approx([0.0, 0.1, 0.1])
    late = log(*begin, (16.0, finished, 1), (18.5, started, 2), (19.0, finished, 0), (19.9, finished, 2))
    assert gaps_s(late, num_runs=3, num_slots=2) == pytest.approx([0.0, 0.1, 2.5])
    waits_for_both = log(*begin, (16.0, finished, 0), (19.0, finished, 1), (19.0, started, 2))
    assert max(gaps_s(waits_for_both, num_runs=3, num_slots=2)) == pytest.approx(3.0)


def test_a_slot_that_is_never_used_is_a_gap() -> None:
    events: list[tuple[float, str, int]] = []
    for run in range(3):
        events += [(2.0 * run, "run_started", run), (2.0 * run + 1.9, "run_finished", run)]
    assert max(gaps_s(log(*events), num_runs=3, num_slots=1)) == pytest.approx(0.1)
    assert max(gaps_s(log(*events), num_runs=3, num_slots=2)) == pytest.approx(2.1)


def test_a_run_that_is_never_started_waits_to_the_end_of_the_log() -> None:
    events = log((0.0, "run_started", 0), (1.0, "run_finished", 0), (9.0, "launch_ended", -1))
    assert gaps_s(events, num_runs=2, num_slots=1) == pytest.approx([0.0, 8.0])
    assert gaps_s(events, num_runs=1, num_slots=1) == pytest.approx([0.0])


def test_a_failed_run_waits_again() -> None:
    events = log((0.0, "run_started", 0), (1.0, "run_failed", 0), (9.0, "launch_ended", -1))
    assert gaps_s(events, num_runs=1, num_slots=1) == pytest.approx([0.0])
    events[1]["will_retry"] = True
    assert gaps_s(events, num_runs=1, num_slots=1) == pytest.approx([0.0, 8.0])


def test_more_runs_than_slots_are_refused() -> None:
    events = log((0.0, "run_started", 0), (1.0, "run_started", 1))
    with pytest.raises(AssertionError, match="run 1 is one more than there are slots"):
        gaps_s(events, num_runs=2, num_slots=1)


def fit(folder: Path, *arguments: str) -> list[Event]:
    """Trains the runs of an experiment, each in a process of its own, and returns the launch's events."""
    command = ["fit", *arguments, "--experiment.name", "many", "--experiment.output_dir", str(folder)]
    command += ["--experiment.gather", "none", "--trainer.logger", "false"]
    assert main(command) == 0
    return read_events(folder / "many" / "events.jsonl")


@pytest.mark.slow
def test_no_slot_idles_while_a_run_waits(small_data: SmallData, tmp_path: Path) -> None:
    arguments = ["--trainer.max_steps", "3", "--experiment.seeds", "1..10"]
    arguments += ["--trainer.devices", "4", "--launch.threads_per_run", "1"]
    events = fit(tmp_path, *small_data.arguments, *arguments)
    gaps = gaps_s(events, num_runs=10, num_slots=4)
    assert len(gaps) == 10
    assert max(gaps) < LONGEST_GAP_S, gaps
    assert sorted(event["run"] for event in events if event["event"] == "run_finished") == list(range(10))


@pytest.mark.slow
@pytest.mark.skipif(num_cores() < 2, reason="needs two cores to train on side by side")
def test_two_runs_side_by_side_beat_one_after_the_other(tmp_path: Path) -> None:
    steps = ["--trainer.max_steps", "12", "--experiment.seeds", "1..2", "--trainer.accelerator", "cpu"]
    ways = {"side by side": ("2", "1"), "one after the other": ("1", "2")}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for pair in range(NUM_PAIRS):
        for way, (num_slots, num_threads) in ways.items():
            arguments = ["--trainer.devices", num_slots, "--launch.threads_per_run", num_threads]
            events = fit(tmp_path / f"{way} {pair}", "--config", str(NOTEBOOK), *steps, *arguments)
            starts = [event["monotonic_s"] for event in events if event["event"] == "run_started"]
            ends = [event["monotonic_s"] for event in events if event["event"] == "run_finished"]
            assert (len(starts), len(ends)) == (2, 2)
            assert (max(starts) < min(ends)) is (way == "side by side")
            seconds[way].append(max(ends) - min(starts))
    print(seconds)
    assert statistics.median(seconds["side by side"]) < statistics.median(seconds["one after the other"])
