"""What an experiment says of itself, in `experiment.json`. No numpy here, so that `status` starts at once."""

import json
from typing import Any

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths


def read_record(paths: ExperimentPaths) -> dict[str, Any]:
    """Returns the content of `experiment.json`.

    Raises:
        UserError: If there is none: not an experiment's folder.
        RunError: If it cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads(paths.record.read_text(encoding="utf-8"))
        numbers = [run["index"] for run in record["runs"]]
        if numbers != list(range(len(numbers))) or not numbers:
            raise ValueError(f"its runs are numbered {numbers}")
        config = record["config"]
        _ = record["name"], config["experiment"]["gather"], config["trainer"]["max_steps"]
        _ = config["recorder"]["every_n_steps"], [(run["seed"], run["swept"]) for run in record["runs"]]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{paths.folder} is no experiment's folder: it has no {paths.record.name}. "
            "Give the folder that holds run_0, run_1, ..."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"Cannot read {paths.record}: {type(error).__name__}: {error}. "
            "Bring back the file as flannel-pl fit wrote it."
        ) from error
    return record
