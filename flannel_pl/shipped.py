"""What comes with the package besides its code: the configs, in an installed wheel as in a checkout."""

from pathlib import Path

from flannel_pl.errors import RunError

_INSTALLED = Path(__file__).parent / "configs"
_CHECKOUT = Path(__file__).parents[1] / "configs"


def shipped_configs() -> dict[str, Path]:
    """Returns the name of every config that comes with flannel-pl -> its file, e.g. "quickstart".

    Raises:
        RunError: They are not where the installation has put them.
    """
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    found = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if not found:
        raise RunError(f"The configs of flannel-pl are not in {folder}. Install flannel-pl anew.")
    return found
