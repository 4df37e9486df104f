"""What the project says of itself agrees wherever it says it: pyproject, CITATION.cff, constraints, forms."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

import flannel_pl

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOGGERS = {"comet": "_COMET_AVAILABLE", "mlflow": "_MLFLOW_AVAILABLE", "wandb": "_WANDB_AVAILABLE"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_there_is_one_version() -> None:
    assert PROJECT["version"] == CITATION["version"] == flannel_pl.__version__


def test_the_citation_has_what_its_format_asks_for_and_is_of_this_project() -> None:
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["authors"] == PROJECT["authors"]
    assert CITATION["keywords"] == PROJECT["keywords"]
    assert CITATION["title"].startswith(PROJECT["name"])


def test_all_addresses_are_of_one_place() -> None:
    home = PROJECT["urls"]["Homepage"]
    assert CITATION["repository-code"] == home
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} == PROJECT["urls"].keys()
    assert [url for url in PROJECT["urls"].values() if not url.startswith(home)] == []


def test_classifiers_are_such_and_say_what_the_rest_says() -> None:
    ours = PROJECT["classifiers"]
    assert set(ours) <= set(classifiers)
    allowed = SpecifierSet(PROJECT["requires-python"])
    minors = [match[1] for one in ours if (match := re.search(r":: Python :: (3\.\d+)$", one))]
    assert minors
    assert all(minor in allowed for minor in minors)
    assert ("Typing :: Typed" in ours) == (ROOT / "flannel_pl" / "py.typed").is_file()
    assert not any(one.startswith("License ::") for one in ours), "`license` says it, and both are refused"


NEEDED = [*PROJECT["dependencies"], *(line for name in EXTRAS if name != "dev" for line in EXTRAS[name])]


@pytest.mark.parametrize("line", NEEDED)
def test_a_dependency_has_a_lowest_and_an_upper_version(line: str) -> None:
    bounds = {bound.operator for bound in Requirement(line).specifier}
    assert bounds == {">=", "<"}


@pytest.mark.parametrize(
    "line", [*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["docs"], *EXTRAS["peers"]]
)
def test_what_is_pinned_is_allowed(line: str) -> None:
    requirement = Requirement(line)
    if requirement.name == PROJECT["name"]:  # an extra of its own
        assert requirement.extras <= EXTRAS.keys()
        return
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("name", LOGGERS)
def test_a_loggers_extra_is_what_lightning_asks_for(name: str) -> None:
    (ours,) = map(Requirement, EXTRAS[name])
    theirs = Requirement(
        getattr(importlib.import_module(f"lightning.pytorch.loggers.{name}"), LOGGERS[name]).requirement
    )
    assert canonicalize_name(ours.name) == canonicalize_name(theirs.name)
    (lowest,) = (bound.version for bound in ours.specifier if bound.operator == ">=")
    assert lowest in theirs.specifier


def test_there_is_an_extra_for_each_logger() -> None:
    assert EXTRAS.keys() == {"completion", "dev", "docs", "peers", "tensorboard", *LOGGERS}


def test_git_asks_the_ruff_that_make_lint_asks() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = {hook["id"]: hook for hook in repo["hooks"]}
    assert hooks["ruff-check"]["entry"].startswith("ruff check")
    assert hooks["ruff-format"]["entry"].startswith("ruff format")
    assert all(hook["additional_dependencies"] == [f"ruff=={pins()['ruff']}"] for hook in hooks.values())


def test_the_workflow_runs_what_everybody_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("form", FORMS, ids=[form.stem for form in FORMS])
def test_a_form_has_what_its_format_asks_for(form: Path) -> None:
    read = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.stem == "config":
        assert read == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= read.keys()
    ids = [part["id"] for part in read["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    assert all(part["attributes"] for part in read["body"])
    mentioned = set(re.findall(r"\b(?:docs/)?[\w-]+\.md\b", form.read_text(encoding="utf-8")))
    assert [name for name in sorted(mentioned) if not (ROOT / name).is_file()] == []
