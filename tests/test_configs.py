"""Every committed config can be trained as it stands, explains its keys, and says what it claims."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flannel_pl.__main__ import main
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.training.checked import check
from flannel_pl.training.cli import resolve
from tests.schemas import build_schema

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


QUICK = ("quickstart", "flannel3")


@pytest.fixture(
    params=[pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow) for path in CONFIGS],
    ids=[path.stem for path in CONFIGS],
)
def config(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_it_could_be_trained(config: Path) -> None:
    experiment = ResolvedExperiment.from_config(resolve(["--config", str(config)]))
    assert experiment.paths.folder.name == config.stem
    assert check(experiment, experiment.runs[0]).recording_bytes > 0


def test_print_config_round_trips(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), "--print_config"])
    assert end.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert resolve(["--config", str(printed)]) == resolve(["--config", str(config)])


def test_flannel3_is_the_notebook_and_its_size_is_the_true_one() -> None:
    configs = {path.stem: resolve(["--config", str(path)]) for path in CONFIGS}
    flannel3 = ResolvedExperiment.from_config(configs["flannel3"])
    assert [run.seed for run in flannel3.runs] == list(range(42, 52))
    model: dict[str, Any] = dict(flannel3.config.model.arguments)
    schema = build_schema(
        tensors=flannel3.config.recorder.arguments["tensors"],
        dtypes={},
        num_tokens=model["vocab_size"],
        hidden_dim=model["hidden_dim"],
        max_steps=flannel3.config.trainer.max_steps,
        every_n_steps=1,
    )
    notebook = {"recorded_steps", "embeddings", "grads", "momentum", "variance", "logits", "losses"}
    bytes_per_row = sum(column.row_bytes for column in schema.columns if column.name in notebook)
    assert schema.num_rows * bytes_per_row == 5_145_150_010


def test_flannel1_is_run_0_of_flannel3_and_quickstart_the_same_in_small() -> None:
    loaded = {path.stem: resolve(["--config", str(path)]) for path in CONFIGS}
    for name in ("model", "data", "recorder"):
        assert loaded["flannel1"][name] == loaded["flannel3"][name] == loaded["quickstart"][name], name
    assert loaded["flannel1"]["trainer"] == loaded["flannel3"]["trainer"]
    assert loaded["flannel1"]["experiment"]["seeds"] == 42
    quick = loaded["quickstart"]["trainer"] | {"max_steps": 1000}
    assert quick == loaded["flannel3"]["trainer"]


def test_every_key_has_a_comment(config: Path) -> None:
    lines = config.read_text().splitlines()
    values = [
        line for line in lines if line.startswith("  ") and ":" in line and not line.strip().startswith("#")
    ]
    plain = {"weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "tensors"}  # their names say it all
    missing = [line for line in values if "#" not in line and line.strip().split(":")[0] not in plain]
    assert not missing
    assert set(yaml.safe_load(config.read_text())) <= {
        "experiment",
        "trainer",
        "model",
        "data",
        "recorder",
        "launch",
    }
