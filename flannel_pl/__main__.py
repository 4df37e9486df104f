"""The verbs of `flannel-pl`. A verb's modules are imported only when the verb is named."""

import contextlib
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flannel_pl.answer import answer, is_asked, listen
from flannel_pl.cli.verbs import PURPOSES
from flannel_pl.errors import Interrupted, UserError, explanation, foreign_place
from flannel_pl.imports import quick_imports, stand_alone
from flannel_pl.terminal import plain_text

if TYPE_CHECKING:
    from flannel_pl.cli.finished import Finished


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: The command line without the program's name; None = `sys.argv`.

    Returns:
        The exit code: 0 done; 1 a run or a check failed; 2 wrong usage, config or input; 130 or 143
        interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    listen()
    debug = "--debug" in words
    with plain_text():
        return _explained([word for word in words if word != "--debug"], debug=debug)


def _explained(words: list[str], *, debug: bool) -> int:
    """Runs one verb; what ends it early is said in a line or two."""
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # here, where a failure is ours to explain
        return code
    except BrokenPipeError:  # whoever read our output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Interrupted as interruption:
        again = shlex.join(["flannel-pl", *words])
        lost = "nothing is lost, go on" if interruption.keeps_all else "what is not finished begins anew"
        stopped = f"stopped by {interruption}; {lost} with"
        _tell(f"{stopped}: {again}", stopped=f"{stopped} the same call")
        return 128 + interruption.signal_number
    except KeyboardInterrupt:
        _tell("stopped by SIGINT", stopped="stopped by SIGINT")
        return 128 + signal.SIGINT
    except Exception as error:
        known = explanation(error)
        if known is None or debug:
            traceback.print_exception(error)
        what = f"{type(error).__name__}: {error}"
        fault = f"a fault of flannel-pl, please report it: {what}"
        if (place := foreign_place(error)) is not None:
            fault = f"{what}; raised by code that is not flannel-pl's: {place}"
        said = str(known or fault)
        _tell(f"flannel-pl: error: {said}", error=said, kind=type(known).__name__)
        return 2 if isinstance(known, UserError) else 1


def _tell(line: str, **facts: str) -> None:
    """Prints a line for a person, or leaves it to the program that listens."""
    if is_asked():
        answer(**facts)
    else:
        print(line, file=sys.stderr)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "help" and len(words) == 2:
        return _dispatch([words[1], "--help"])
    if words[0] == "help":
        print(_usage())
        return 0
    if words[0] in ("-V", "--version"):
        from flannel_pl import __version__

        print(f"flannel-pl {__version__}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        import difflib

        nearest = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; the verbs are {', '.join(VERBS)}"
        raise UserError(f"{verb!r} is no verb of flannel-pl{hint}")
    if sys.platform == "win32" and verb in NEED_POSIX:
        raise UserError(
            f"`flannel-pl {verb}` runs on Linux and macOS; on Windows use WSL2. Recordings can be read here: "
            f"{', '.join(name for name in VERBS if name not in (*NEED_POSIX, 'init', 'completion'))}"
        )
    return VERBS[verb][1](words[1:])


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<10} {purpose}" for verb, (purpose, _) in VERBS.items())
    return f"""\
flannel-pl: record everything at every step, for many seeds at once.

usage: flannel-pl VERB [arguments] [--debug]

{verbs}

`flannel-pl help VERB` explains a verb. `--debug` shows the traceback of an error.
{", ".join(NEED_POSIX)} run on Linux and macOS; the others on Windows as well."""


def _before_imports(verb: str, words: list[str]) -> list[str] | None:
    """Does what takes no torch: help, and refusing a key that there is not. Returns what is left to do."""
    from flannel_pl.cli.configs import with_config
    from flannel_pl.cli.keys import asked_help, help_of_group, refuse_unknown

    if not _has_working_folder():
        raise UserError("the working folder is gone; change to one that is there, e.g. with cd")
    for word in words:
        if word.startswith("--help."):
            print(help_of_group(word.removeprefix("--help.")))
            return None
    words = with_config(words)
    text = asked_help(verb, VERBS[verb][0], words)
    if text is not None:
        print(text)
        return None
    refuse_unknown(words)
    return words


def _has_working_folder() -> bool:
    try:
        return Path.cwd().is_dir()
    except OSError:
        return False


def _fit(words: list[str]) -> int:
    left = _before_imports("fit", words)
    if left is None:
        return 0
    if (finished := _finished(left)) is not None:
        answer(folder=str(finished.paths.folder))
        print(finished)
        return 0
    stand_alone()
    _number_devices()
    _prepare_for_several_runs(left)
    with quick_imports():
        from flannel_pl.cli.fit import fit_verb

    return fit_verb(left)


def _finished(words: list[str]) -> "Finished | None":
    from flannel_pl.cli.finished import finished_already

    return finished_already(words)


def _prepare_for_several_runs(words: list[str]) -> None:
    from flannel_pl.cli.ahead import prepare_for_several_runs

    prepare_for_several_runs(words)


def _number_devices() -> None:
    from flannel_pl.launch.devices import number_like_nvidia_smi

    number_like_nvidia_smi()


def _plan(words: list[str]) -> int:
    left = _before_imports("plan", words)
    if left is None:
        return 0
    if (finished := _finished(left)) is not None:
        print(f"{finished.paths.folder} is finished; there is nothing to train")
        return 0
    stand_alone()
    _number_devices()
    with quick_imports():
        from flannel_pl.cli.fit import plan_verb

    return plan_verb(left)


def _init(words: list[str]) -> int:
    from flannel_pl.cli.configs import init_verb

    return _call(init_verb, words)


def _completion(words: list[str]) -> int:
    from flannel_pl.cli.completion import completion_verb

    return _call(completion_verb, words)


def _prepare(words: list[str]) -> int:
    from flannel_pl.corpus.prepare import prepare_verb

    return _call(prepare_verb, _list_option(words, "--tokenizer_text"))


def _gather(words: list[str]) -> int:
    from flannel_pl.recording.gathering.gather import gather_verb

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


def _verify(words: list[str]) -> int:
    from flannel_pl.recording.checking.verify import verify_verb

    return _call(verify_verb, words)


def _compare(words: list[str]) -> int:
    from flannel_pl.analysis.comparing.verb import compare_verb

    return _call(compare_verb, words)


def _report(words: list[str]) -> int:
    from flannel_pl.analysis.reporting.verb import report_verb

    return _call(report_verb, words, several="paths")


def _status(words: list[str]) -> int:
    from flannel_pl.launch.status import status_verb

    # Where jsonargparse wants `--watch true`.
    return _call(status_verb, ["--watch=true" if word == "--watch" else word for word in words])


def _call(verb: Callable[..., int | None], words: list[str], *, several: str | None = None) -> int:
    """Calls a function with arguments from the command line and returns its exit code, 0 if it has none.

    Its signature and docstring are the --help.

    Args:
        verb: The function.
        words: The command line behind the verb's name.
        several: Its argument that takes all plain words, one at least; None = there is no such argument.
    """
    from jsonargparse import ArgumentParser, auto_cli

    from flannel_pl.arguments import read_exactly

    read_exactly()

    class Parser(ArgumentParser):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "allow_abbrev": False})  # a beginning may be a misspelt option

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(f"{' '.join(message.split())}; see flannel-pl {name} --help")

    name = verb.__name__.removesuffix("_verb")
    program = f"flannel-pl {name}"
    if several is None:
        code: int | None = auto_cli(verb, args=words, as_positional=True, parser_class=Parser, prog=program)
        return code or 0
    from docstring_parser import parse

    described = parse(verb.__doc__)
    parser = Parser(prog=program, description=described.short_description)
    text = next(one.description for one in described.params if one.arg_name == several)
    parser.add_argument(several, nargs="+", type=Path, metavar="PATH", help=text)
    parser.add_function_arguments(verb, skip={several}, as_group=False)
    return verb(**parser.parse_args(words).as_dict()) or 0


NEED_POSIX = ("fit", "plan", "prepare", "gather")
"""Verbs that need what Windows has not: signals, locks, writing at a place."""

VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "fit": (PURPOSES["fit"], _fit),
    "plan": (PURPOSES["plan"], _plan),
    "init": (PURPOSES["init"], _init),
    "prepare": (PURPOSES["prepare"], _prepare),
    "status": (PURPOSES["status"], _status),
    "gather": (PURPOSES["gather"], _gather),
    "info": (PURPOSES["info"], _info),
    "verify": (PURPOSES["verify"], _verify),
    "report": (PURPOSES["report"], _report),
    "compare": (PURPOSES["compare"], _compare),
    "completion": (PURPOSES["completion"], _completion),
}


def _leave_working_folder_out() -> None:
    """Lets nothing be imported from the working folder, as `python -m` would and `flannel-pl` does not."""
    with contextlib.suppress(OSError, IndexError):  # the working folder may be gone
        here = Path.cwd()
        if not sys.flags.safe_path and Path(sys.path[0]).resolve() == here != Path(__file__).parents[1]:
            del sys.path[0]


if __name__ == "__main__":
    _leave_working_folder_out()
    sys.exit(main())
