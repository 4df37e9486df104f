"""What the README says can be done, can be done; links lead somewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from flannel_pl.__main__ import VERBS, main
from tests.conftest import SmallData

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CODE_OF_CONDUCT.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_demo_installs_no_developer_tools_and_says_what_it_does(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    plan = {
        target: subprocess.check_output(["make", "-n", target], cwd=tmp_path, text=True)
        for target in ("demo", "lint")
    }
    assert "[dev]" in plan["lint"]
    assert "[dev]" not in plan["demo"]
    shown = [line for line in plan["demo"].splitlines() if "/flannel-pl " in line]
    assert len(shown) == plan["demo"].count(" of 3: ") == 3
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "@$(BIN)" not in makefile, "a command that is not shown"


def test_no_line_is_long() -> None:
    assert [line for line in README.splitlines() if len(line) > 120] == []


def test_every_verb_in_the_readme_is_one() -> None:
    named = set(re.findall(r"^flannel-pl (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE))
    assert named >= {"fit", "plan", "status", "info", "report"}
    assert named <= set(VERBS)


def test_reading_a_step_back_works_as_printed(small_data: SmallData, tmp_path: Path) -> None:
    command = ["fit", *small_data.arguments, "--trainer.max_steps", "20", "--experiment.seeds", "42..43"]
    assert (
        main([*command, "--experiment.name", "quickstart", "--experiment.output_dir", str(tmp_path / "runs")])
        == 0
    )
    ours, stock = (block for block in blocks("python") if "open" in block)
    shapes = [
        subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)
        for code in (ours, stock)
    ]
    num_dead = len(load_file(small_data.masks)["dead_indices"])
    assert shapes[0].startswith(f"(10, {num_dead}, 16) torch.bfloat16 4.")
    assert shapes[1].startswith("torch.Size([10, 100, 16]) tensor(42) tensor([42, 43])")
