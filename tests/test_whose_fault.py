"""Whose code an unexpected error comes from: ours is a fault to report, a callback's is its author's."""

from pathlib import Path
from typing import Any

import pytest

from flannel_pl import __main__ as verbs
from flannel_pl.__main__ import main
from tests.conftest import SmallData

OTHERS = "odd_classes.py, line "


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (
            ["FailingAtTheEnd", "--trainer.callbacks.error", "KeyError", "--trainer.callbacks.step", "9"],
            "JSON",
        ),
        (
            ["Failing", "--trainer.callbacks.error", "KeyError", "--trainer.callbacks.step", "2"],
            "KeyError: 'odd'",
        ),
        (["Failing", "--trainer.callbacks.error", "RuntimeError"], "RuntimeError: odd"),
        (["Failing", "--trainer.callbacks.error", "OSError", "--trainer.callbacks.step", "2"], "error: odd;"),
    ],
    ids=["in a library that it uses", "in the middle", "before the first step", "of a file of its own"],
)
def test_an_error_in_a_callback_is_its_own(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], callback: list[str], words: str
) -> None:
    command = [
        "fit",
        *small_data.arguments,
        "--trainer.max_steps",
        "3",
        "--trainer.enable_progress_bar",
        "false",
    ]
    named = f"--trainer.callbacks+=tests.training.odd_classes.{callback[0]}"
    assert main([*command, "--experiment.output_dir", str(tmp_path), named, *callback[1:]]) == 1
    *trace, last = capsys.readouterr().err.splitlines()
    assert words in last
    assert "raised by code that is not flannel-pl's: " in last
    assert OTHERS in last
    # What the system refuses needs none.
    assert "OSError" in callback or any("Traceback" in line for line in trace)


def test_ours_is_ours_wherever_it_ends(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(words: list[str]) -> Any:
        from flannel_pl.training.cli import resolve

        return resolve([None, *words])  # type: ignore[list-item]

    monkeypatch.setitem(verbs.VERBS, "fit", ("fails", fit))
    assert main(["fit"]) == 1
    assert "a fault of flannel-pl, please report it: " in capsys.readouterr().err
