"""Two commands for one folder that start at the same moment: one config is trained, and the other refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.safetensors.layout import read_layout
from tests.conftest import SmallData

DELAYS_S = (0.0, 0.05, 0.1, 0.15)
RATES = (0.001, 0.5)


@pytest.mark.parametrize(
    ("seeds", "delays_s"),
    [("7", DELAYS_S[1:2]), *(pytest.param(runs, DELAYS_S, marks=pytest.mark.slow) for runs in ("7", "7..8"))],
)
def test_of_two_configs_that_start_at_once_one_is_refused(
    small_data: SmallData, tmp_path: Path, seeds: str, delays_s: tuple[float, ...]
) -> None:
    pairs = []
    for number, delay_s in enumerate(delays_s):
        output = tmp_path / f"output {number}"
        output.mkdir()
        place = ["--experiment.output_dir", str(tmp_path), "--experiment.name", f"exp{number}"]
        words = [
            "fit",
            *small_data.arguments,
            *place,
            "--experiment.seeds",
            seeds,
            "--trainer.max_steps",
            "2",
        ]
        commands = [[*words, "--model.learning_rate", str(rate)] for rate in RATES]
        pairs.append({"commands": commands, "delay_s": delay_s, "output": str(output)})
    command = [sys.executable, "-m", "tests.launch.at_once"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, input=json.dumps(pairs), capture_output=True, text=True, timeout=300, cwd=root, check=True
    )
    for number, codes in enumerate(json.loads(done.stdout)):
        said = [(tmp_path / f"output {number}" / f"{which}.txt").read_text() for which in (0, 1)]
        assert sorted(codes) == [0, 2], (codes, said)
        winner, loser = codes.index(0), codes.index(2)
        paths = ExperimentPaths(tmp_path / f"exp{number}", f"exp{number}")
        difference = f"Different: model.learning_rate: {RATES[winner]} there, {RATES[loser]} now"
        assert difference in said[loser].splitlines()[-1], said[loser]
        assert json.loads(paths.record.read_text())["config"]["model"]["learning_rate"] == RATES[winner]
        shard = read_layout(paths.run(0).recording).flannel
        assert shard["config"]["model"]["learning_rate"] == RATES[winner]
        assert verify(paths.folder).ok
