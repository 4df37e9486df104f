"""How an experiment ends: what became of its runs, and its one recording."""

import shlex
from contextlib import nullcontext

from flannel_pl.cli.beginning import locked_experiment
from flannel_pl.cli.request import Request
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.launch.events import EventLog
from flannel_pl.launch.gathering import BackgroundGather, finish_gathering
from flannel_pl.launch.standing import Outcome
from flannel_pl.launch.summary import summarize
from flannel_pl.recording.gathering.gathered import is_gathered
from flannel_pl.recording.writing.leftovers import clear, has_leftovers
from flannel_pl.signals import interruptible


def summarized(request: Request, outcomes: list[Outcome]) -> bool:
    """Says how the runs went, and returns whether all went well."""
    summarize(request.experiment, outcomes, command=["fit", *request.words])
    return not any(outcome.failure for outcome in outcomes)


def finish_experiment(
    experiment: ResolvedExperiment, *, background: BackgroundGather | None = None, is_locked: bool = False
) -> int:
    """Gathers the recordings if that is wanted and not done yet, and says where everything is."""
    mode, paths = experiment.config.experiment.gather, experiment.paths
    if experiment.config.experiment.run is not None or mode == "none":
        for run in experiment.selected:
            print(f"finished: {paths.run(run.index).recording}")
        return 0
    target = paths.gathered if mode == "single" else paths.index
    is_new = False
    indices = [run.index for run in experiment.runs]
    # Else not even a lock may change the folder.
    if not is_gathered(paths, mode=mode) or (not is_locked and has_leftovers(paths, indices)):
        with nullcontext() if is_locked else locked_experiment(experiment), interruptible():
            events = EventLog(paths.events)
            is_new = finish_gathering(paths, mode=mode, events=events, background=background)
            clear(paths, indices)
    if is_new:
        print(f"what is in it: flannel-pl info {shlex.quote(str(target))}")
    else:
        print(f"finished already: {target}")
    return 0
