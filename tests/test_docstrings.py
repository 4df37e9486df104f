"""The examples in docstrings give what they say; those marked +SKIP need a recording or a long training."""

import doctest
import importlib
import pkgutil

import pytest

import flannel_pl

MODULES = [module.name for module in pkgutil.walk_packages(flannel_pl.__path__, "flannel_pl.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed, capsys.readouterr().out
