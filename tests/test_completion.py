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


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 0
    script = tmp_path / "flannel-pl.fish"
    script.write_text(capsys.readouterr().out)
    asked = f"source '{script}'; complete -C 'flannel-pl fit --model.ad'; complete -C 'flannel-pl init q'"
    done = subprocess.run(["fish", "-c", asked], capture_output=True, text=True, check=True)
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert found == ["--model.adam_beta1", "--model.adam_beta2", "--model.adam_epsilon", "quickstart"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    script = tmp_path / "_flannel-pl"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["zsh", "-n", str(script)], check=True)
    assert script.read_text().startswith("#compdef flannel-pl\n")


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert (
        "completion needs shtab, which is not installed: pip install 'flannel-pl[com"
        in capsys.readouterr().err
    )
