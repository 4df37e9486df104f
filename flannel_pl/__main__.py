"""The verbs of `flannel-pl`. A verb's modules are imported only when the verb is named."""

import json
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from flannel_pl.errors import Interrupted, RunError, UserError

if TYPE_CHECKING:
    from flannel_pl.experiment import Experiment


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: The command line without the program's name; None = `sys.argv`.

    Returns:
        The exit code: 0 done; 1 a run or a check failed; 2 wrong usage, config or input; 130 or 143
        interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except UserError as error:
        return _complain(error, code=2, debug=debug)
    except RunError as error:
        return _complain(error, code=1, debug=debug)
    except Interrupted as interruption:
        print(f"stopped by {interruption}; the same command trains the unfinished runs", file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        from flannel_pl import __version__

        print(f"flannel-pl {__version__}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        import difflib

        nearest = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; the verbs are {', '.join(VERBS)}"
        raise UserError(f"{verb!r} is no verb of flannel-pl{hint}")
    return VERBS[verb][1](words[1:])


def _complain(error: Exception, *, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"flannel-pl: error: {error}", file=sys.stderr)
    return code


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<8} {purpose}" for verb, (purpose, _) in VERBS.items())
    return f"""\
flannel-pl: record everything at every step, for many seeds at once.

usage: flannel-pl VERB [arguments] [--debug]

{verbs}

`flannel-pl VERB --help` explains a verb. `--debug` shows the traceback of an error."""


def _fit(words: list[str]) -> int:
    from flannel_pl.experiment import Experiment
    from flannel_pl.launch.folder import unfinished_runs, write_folder, write_run_config
    from flannel_pl.launch.local import train_all
    from flannel_pl.launch.plan import make_plan
    from flannel_pl.launch.summary import summarize
    from flannel_pl.training.cli import resolve, to_yaml
    from flannel_pl.training.fit import check, train

    experiment = Experiment.from_config(resolve(words))
    runs = unfinished_runs(experiment)
    if not runs:
        return _finish(experiment)
    checked = {run.index: check(experiment, run) for run in experiment.selected}
    plan = make_plan(
        experiment, runs, bytes_of={index: run.recording_bytes for index, run in checked.items()}
    )
    corpus = checked[runs[0].index].corpus
    write_folder(experiment, save_masks=corpus.masks.save, data_digests=corpus.digests)
    for run in runs:
        write_run_config(experiment, run, plan.slots[0], to_yaml=to_yaml)
    if len(runs) == 1:
        train(experiment, runs[0], plan.slots[0])
    else:
        outcomes = train_all(experiment, runs, plan.slots)
        summarize(experiment, outcomes)
        if any(outcome.failure for outcome in outcomes):
            return 1
    return _finish(experiment)


def _finish(experiment: "Experiment") -> int:
    """Gathers the recordings if that is wanted and not done yet, and says where everything is."""
    from flannel_pl.recording.gather import gather_verb

    mode, paths = experiment.config["experiment"]["gather"], experiment.paths
    if experiment.config["experiment"]["run"] is not None or mode == "none":
        for run in experiment.selected:
            print(f"finished: {paths.run(run.index).recording}")
        return 0
    target = paths.gathered if mode == "single" else paths.index
    if target.exists():
        print(f"finished already: {target}")
    else:
        gather_verb(paths.folder, mode=mode)
        print(f"what is in it: flannel-pl info {shlex.quote(str(target))}")
    return 0


def _plan(words: list[str]) -> int:
    from flannel_pl.experiment import Experiment
    from flannel_pl.launch.folder import unfinished_runs
    from flannel_pl.launch.plan import describe, make_plan
    from flannel_pl.training.cli import resolve
    from flannel_pl.training.fit import check

    experiment = Experiment.from_config(resolve(words))
    runs = unfinished_runs(experiment)
    bytes_of = {run.index: check(experiment, run).recording_bytes for run in experiment.selected}
    print(describe(experiment, make_plan(experiment, runs, bytes_of=bytes_of)))
    return 0


def _prepare(words: list[str]) -> int:
    from flannel_pl.corpus.prepare import prepare

    return _call(prepare, _list_option(words, "--tokenizer_text"))


def _gather(words: list[str]) -> int:
    from flannel_pl.recording.gather import gather_verb

    return _call(gather_verb, words)


def _info(words: list[str]) -> int:
    from flannel_pl.recording.info import info_verb

    return _call(info_verb, words)


def _list_option(words: list[str], option: str) -> list[str]:
    """Lets a list be given as plain words, `--option A B`; jsonargparse wants `--option '["A", "B"]'`."""
    if option not in words:
        return words
    start = words.index(option) + 1
    end = next((index for index in range(start, len(words)) if words[index].startswith("--")), len(words))
    return [*words[:start], json.dumps(words[start:end]), *words[end:]]


def _call(verb: Callable[..., None], words: list[str]) -> int:
    """Calls a function with arguments from the command line; its signature and docstring are the --help."""
    from jsonargparse import ArgumentParser, auto_cli

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(f"{' '.join(message.split())}; see flannel-pl {name} --help")

    name = verb.__name__.removesuffix("_verb")
    auto_cli(verb, args=words, as_positional=True, parser_class=Parser, prog=f"flannel-pl {name}")
    return 0


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "fit": ("train every run of an experiment, then gather their recordings", _fit),
    "plan": ("print what fit would do, and do nothing", _plan),
    "prepare": ("make tokenizer, corpus and token masks from text", _prepare),
    "gather": ("join the finished recordings of an experiment (again)", _gather),
    "info": ("show what is in a recording", _info),
}


if __name__ == "__main__":
    sys.exit(main())
