"""What docs/format.md promises, checked by a reader made from that page alone, on files of real runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.errors import RunError
from flannel_pl.models.tied_gpt2 import TiedGPT2
from tests.conftest import SmallData
from tests.recording.format_reader import check_experiment, check_gathered, check_shard, read

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| (`[^|]+) \| (both|shard|gathered) \| ", PAGE, re.MULTILINE)
KEYS = {
    file: {key for names, where in TABLE if where in ("both", file) for key in re.findall(r"`(\w+)`", names)}
    for file in ("shard", "gathered")
}
KEYS["ended early"] = KEYS["shard"].copy()
KEYS["shard"].remove("ended")
SHARED = {"config", "schema", "run", "header_checksum", "columns"}  # columns: where no run differs


@pytest.fixture(scope="module")
def indexed(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the dead tokens, every second step, in more exact types, with an index."""
    folder = tmp_path_factory.mktemp("format")
    words = ["--experiment.name", "x", "--experiment.output_dir", str(folder), "--experiment.gather", "index"]
    words += ["--trainer.max_steps", "5", "--recorder.every_n_steps", "2", "--recorder.tokens", "dead"]
    words += ["--recorder.dtypes", "{grads: float32, momentum: float16}", "--model.weight_decay", "0.1"]
    assert main(["fit", *small_data.arguments, *words]) == 0
    return folder / "x"


def test_a_gathered_file_and_its_shards(example_runs: Path) -> None:
    folder = example_runs / "runs" / "quickstart"
    gathered = read(folder / "quickstart.safetensors")
    check_gathered(gathered)
    assert set(gathered.metadata) == KEYS["gathered"]
    for index, said in enumerate(gathered.metadata["runs"]):
        shard = read(folder / f"run_{index}" / "recording.safetensors")
        check_shard(shard)
        assert set(shard.metadata) == KEYS["shard"]
        assert set(said) == KEYS["shard"] - SHARED | {"index"}
        assert {key: shard.metadata[key] for key in said if key != "index"} == {
            key: value for key, value in said.items() if key != "index"
        }
        for key, tensor in shard.tensors.items():
            assert gathered.tensors[f"run_{index}_{key}"].tobytes() == tensor.tobytes()


def test_an_index_and_what_it_names(indexed: Path) -> None:
    index = json.loads((indexed / "x.safetensors.index.json").read_text())
    shard, extras = read(indexed / "run_0" / "recording.safetensors"), read(indexed / "x.extras.safetensors")
    check_shard(shard, prefix="run_0_")
    assert set(extras.tensors) == check_experiment(extras)
    assert set(extras.metadata) == KEYS["gathered"]
    assert index["weight_map"] == {
        **dict.fromkeys(shard.tensors, "run_0/recording.safetensors"),
        **dict.fromkeys(extras.tensors, "x.extras.safetensors"),
    }
    tensors = [*shard.tensors.values(), *extras.tensors.values()]
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors)}
    assert (shard.tensors["run_0_recorded_tokens"] == extras.tensors["dead_indices"]).all()


def test_a_growing_recording(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = TiedGPT2.training_step

    def stop(self: TiedGPT2, *arguments: Any) -> Any:
        if self.trainer.global_step == 3:
            raise RunError("the power is gone")
        return forward(self, *arguments)

    monkeypatch.setattr(TiedGPT2, "training_step", stop)
    words = ["--experiment.name", "x", "--experiment.output_dir", str(tmp_path), "--trainer.max_steps", "6"]
    assert main(["fit", *small_data.arguments, *words]) == 1
    assert "the power is gone" in capsys.readouterr().err
    partial = read(tmp_path / "x" / "run_0" / "recording.partial")
    check_shard(partial, num_rows=4)
    assert set(partial.metadata) == KEYS["shard"]


def test_a_run_that_ended_early(small_data: SmallData, tmp_path: Path) -> None:
    words = ["--experiment.name", "x", "--experiment.output_dir", str(tmp_path), "--trainer.max_steps", "9"]
    words += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5"]
    words += ["--trainer.log_every_n_steps", "1"]
    assert main(["fit", *small_data.arguments, *words]) == 0
    shard = read(tmp_path / "x" / "run_0" / "recording.safetensors")
    check_shard(shard)
    assert set(shard.metadata) == KEYS["ended early"]
    assert set(shard.fillers.values()) == set(shard.tensors)  # each has become shorter
    gathered = read(tmp_path / "x" / "x.safetensors")
    check_gathered(gathered)
    assert gathered.metadata["runs"][0]["ended"] == shard.metadata["ended"]
