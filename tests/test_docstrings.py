"""The examples in docstrings give what they say; those marked +SKIP need a cluster or long training."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import flannel_pl

MODULES = [module.name for module in pkgutil.walk_packages(flannel_pl.__path__, "flannel_pl.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples(
    name: str, example_runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example_runs)
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"flannel_pl": flannel_pl})
    assert not failed, capsys.readouterr().out
