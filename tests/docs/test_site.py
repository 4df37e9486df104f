"""The documentation site is built without a complaint, and needs nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import flannel_pl
import flannel_pl.quantities
from flannel_pl.__main__ import VERBS
from flannel_pl.training.cli import parser_of

ROOT = Path(__file__).parents[2]
KINDS = ["Home", "Tutorial", "How-to", "Reference", "Explanation"]
LOADED = (
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:[^\"\s>]+)"
    r"|<link\b[^>]*\bhref=\"?(https?:[^\"\s>]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does; a link or reference that leads nowhere is an error there."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    loaded = {
        f"{page.name}: {found}" for page in pages for found in re.findall(LOADED, page.read_text("utf-8"))
    }
    loaded |= {
        f"{sheet.name}: {found}"
        for sheet in site.rglob("*.css")
        for found in re.findall(r"@import[^;]*https?:[^;]*|url\(.?https?:[^)]*", sheet.read_text("utf-8"))
    }
    assert not loaded


@pytest.mark.slow
def test_no_page_leads_out_of_the_site(site: Path) -> None:
    """Links to files of the repository that are no page would work in the repository alone."""
    nowhere = set()
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # may be shown for any address
            continue
        for target in re.findall(r"<a\b[^>]*\bhref=\"?([^\"\s>#?]+)", page.read_text("utf-8")):
            if not re.match(r"\w+:", target) and not (page.parent / target).exists():
                nowhere.add(f"{page.relative_to(site)}: {target}")
    assert not nowhere


@pytest.mark.slow
def test_every_verb_key_and_name_is_in_the_reference(site: Path) -> None:
    def ids(page: str) -> set[str]:
        return set(re.findall(r"\bid=\"?([^\"\s>]+)", (site / page).read_text("utf-8")))

    assert ids("verbs.html") >= {*VERBS, "exit-codes"}
    groups = ("experiment", "launch", "model", "data", "recorder")
    keys = {
        action.dest
        for action in parser_of()._actions
        if hasattr(action, "_typehint") and action.dest.startswith(tuple(f"{group}." for group in groups))
    }
    text = (site / "config.html").read_text("utf-8")
    assert len(keys) > 40
    shown = set(re.findall(r"<td><code[^>]*>([\w.]+)</code><br>", text))
    assert shown == {key for key in keys if not key.endswith(".help")}
    names = {name for name in flannel_pl.__all__ if not name.startswith("__") and name != "hf"}
    there = ids("python-api.html")
    assert {name for name in names if not any(one.endswith(f".{name}") for one in there)} == set()
    there = ids("api-quantities.html")
    own = flannel_pl.quantities.__all__
    assert {name for name in own if not any(one.endswith(f".{name}") for one in there)} == set()


def test_the_navigation_keeps_four_kinds_of_page_apart() -> None:
    class Loader(yaml.SafeLoader):
        """MkDocs has tags of its own."""

    navigation = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]
    assert [next(iter(kind)) for kind in navigation] == KINDS
