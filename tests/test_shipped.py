"""What comes with the package besides code; that a wheel has it is shown in test_wheel.py."""

from pathlib import Path

import pytest

from flannel_pl import shipped
from flannel_pl.errors import RunError
from flannel_pl.shipped import shipped_configs

CONFIGS = Path(__file__).parents[1] / "configs"


def test_a_checkout_has_its_own_configs() -> None:
    assert shipped_configs() == {file.stem: file for file in CONFIGS.glob("*.yaml")}
    assert list(shipped_configs()) == ["flannel1", "flannel3", "quickstart"]


def test_an_installed_package_has_those_within_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    monkeypatch.setattr(shipped, "_INSTALLED", tmp_path)
    assert shipped_configs() == {"mine": tmp_path / "mine.yaml"}


def test_configs_that_are_gone_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "_CHECKOUT", tmp_path / "gone")
    with pytest.raises(
        RunError, match=r"configs of flannel-pl are not in .*gone\. Install flannel-pl anew\."
    ):
        shipped_configs()
