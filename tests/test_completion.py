"""A shell that has sourced the script completes verbs, keys and files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.__main__ import main

ASK = """
source "$1"
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
COMP_LINE="${{COMP_WORDS[*]}}"
COMP_POINT=${{#COMP_LINE}}
_shtab_flannel_pl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("flannel-pl co", ["compare", "completion"]),
        ("flannel-pl fit --model.ad", ["--model.adam_beta1", "--model.adam_beta2", "--model.adam_epsilon"]),
        ("flannel-pl init q", ["quickstart"]),
    ],
)
def test_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, found: list[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    command = ["bash", "-c", ASK.format(words=words), "bash", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == found


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert (
        "completion needs shtab, which is not installed: pip install 'flannel-pl[com"
        in capsys.readouterr().err
    )
