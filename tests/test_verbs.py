"""The verbs as a user types them: in processes of their own, from a shell."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - tells numpy what bfloat16 is, which safetensors leaves to its user
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file

from flannel_pl.__main__ import VERBS, main
from tests.conftest import SMALL_VOCAB_SIZE, SmallData


def flannel(*words: str, cwd: Path | None = None, code: int = 0) -> tuple[str, str]:
    """Runs `python -m flannel_pl` and returns what it printed on stdout and on stderr."""
    process = subprocess.run(
        [sys.executable, "-m", "flannel_pl", *words], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == code, process.stderr
    return process.stdout, process.stderr


@pytest.fixture(scope="module")
def finished(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment of two runs; its folder."""
    folder = tmp_path_factory.mktemp("finished")
    command = ["fit", *small_data.arguments, "--trainer.max_steps", "4", "--experiment.seeds", "42..43"]
    flannel(*command, "--experiment.name", "pair", "--experiment.output_dir", str(folder))
    return folder / "pair"


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    output, _ = flannel("--help")
    assert all(f"  {verb} " in output for verb in VERBS)
    code = (
        "import sys; sys.argv = ['flannel-pl', '--help']\n"
        "from flannel_pl.__main__ import main; main()\n"
        "print('torch' in sys.modules, 'jsonargparse' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "False False"


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"plan"}))
def test_every_verb_explains_its_arguments(verb: str) -> None:
    output, _ = flannel(verb, "--help")
    assert f"usage: flannel-pl {verb}" in output
    explained = {
        "fit": "One run per seed: 42..51 (both ends included), [42, 43] or 7.",
        "completion": "Prints a script that completes verbs, keys and files",
        "init": "Which one, e.g. flannel3 or quickstart.",
        "prepare": "--tokenizer_text",
        "gather": "The experiment's folder",
        "info": "path",
        "status": "--watch",
        "report": "PATH [PATH ...]",
        "compare": "Which run of A to compare with which of B",
        "verify": "Checks every row of a recording against its checksum.",
    }
    assert explained[verb] in " ".join(output.split())


def test_no_command_and_version() -> None:
    assert "usage: flannel-pl VERB" in flannel(code=2)[0]
    assert flannel("--version")[0].startswith("flannel-pl 0.")


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" not in flannel("info", "nowhere", code=2)[1]
    assert "Traceback" in flannel("info", "nowhere", "--debug", code=2)[1]


def test_the_gathered_file_opens_with_stock_safetensors_under_the_notebooks_names(
    finished: Path, small_data: SmallData
) -> None:
    tensors = load_file(finished / "pair.safetensors")
    num_dead = len(load_file(small_data.masks)["dead_indices"])
    assert 0 < num_dead < SMALL_VOCAB_SIZE
    assert {
        name: tensors[name].item() for name in ("n_runs", "base_seed", "n_steps", "n_live", "n_dead")
    } == {
        "n_runs": 2,
        "base_seed": 42,
        "n_steps": 4,
        "n_live": SMALL_VOCAB_SIZE - num_dead,
        "n_dead": num_dead,
    }
    assert tensors["n_runs"].dtype == "int64"
    scalars = ("init_scale", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2")
    assert [tensors[name].dtype.name for name in scalars] == ["float32"] * 5
    assert tensors["seeds"].tolist() == [42, 43]
    for run in range(2):
        shapes = {
            name: tensors[f"run_{run}_{name}"].shape for name in ("embeddings", "grads", "logits", "losses")
        }
        assert shapes == {
            "embeddings": (5, 100, 16),
            "grads": (5, 100, 16),
            "logits": (5, 100),
            "losses": (5,),
        }
        assert tensors[f"run_{run}_recorded_steps"].tolist() == [0, 1, 2, 3, 4]
    assert str(load_torch_file(finished / "pair.safetensors")["run_1_embeddings"].dtype) == "torch.bfloat16"
    with safe_open(finished / "pair.safetensors", framework="np") as file:
        assert list(file.metadata()) == ["flannel"]
        record = json.loads(file.metadata()["flannel"])
    assert record["config"]["model"]["vocab_size"] == 100
    assert set(record["provenance"]) >= {"versions", "git", "command", "host", "data"}


def test_gather_again_gives_the_same_content(finished: Path) -> None:
    before, metadata = load_file(finished / "pair.safetensors"), metadata_of(finished / "pair.safetensors")
    output, _ = flannel("gather", str(finished))
    assert str(finished / "pair.safetensors") in output
    after = load_file(finished / "pair.safetensors")
    assert {key: array.tobytes() for key, array in after.items()} == {
        key: array.tobytes() for key, array in before.items()
    }
    # Only the header's padding may differ: while runs still train, room is left for what they will say.
    assert metadata_of(finished / "pair.safetensors") == metadata


def metadata_of(path: Path) -> Any:
    with safe_open(path, framework="np") as file:
        metadata = json.loads(file.metadata()["flannel"])
    metadata.pop("header_checksum", None)
    return metadata


def test_status_and_verify_of_a_finished_experiment(finished: Path) -> None:
    assert "2 of 2 runs done" in flannel("status", str(finished))[0]
    assert "2 of 2 runs done" in flannel("status", str(finished), "--watch")[0]
    assert "every row is there, and every bit as it was written" in flannel("verify", str(finished))[0]


def test_info_of_file_folder_and_run(finished: Path) -> None:
    for path in (finished, finished / "pair.safetensors", finished / "run_1"):
        output, _ = flannel("info", str(path))
        assert "seed 43, 5 rows (steps 0 to 4)" in output
        assert "embeddings" in output


def test_an_index_copies_nothing_and_stock_code_follows_it(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", *small_data.arguments, "--trainer.max_steps", "2", "--experiment.seeds", "1..2"]
    command += ["--experiment.gather", "index", "--experiment.output_dir", str(tmp_path)]
    assert main(command) == 0
    folder = tmp_path / "flannel"
    index = json.loads((folder / "flannel.safetensors.index.json").read_text())
    assert set(index["weight_map"]) >= {
        "run_0_embeddings",
        "run_1_losses_f32",
        "seeds",
        "dead_mask",
        "n_runs",
    }
    for key, name in index["weight_map"].items():
        with safe_open(folder / name, framework="pt") as file:
            file.get_tensor(key)
    assert not (folder / "flannel.safetensors").exists()


def test_a_run_says_nothing_that_no_user_can_act_on(finished: Path) -> None:
    log = (finished / "run_0" / "log.txt").read_text()
    noises = (
        "litlogger",
        "LeafSpec",
        "loss_type",
        "bos_token_id",
        "eos_token_id",
        "UserWarning",
        "not empty",
    )
    for noise in noises:
        assert noise not in log, log


def test_prepare_takes_several_texts(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"the quick brown {name} jumps over the lazy {name} " * 20)
    words = ["prepare", "--tokenizer_text", "a.txt", "b.txt", "--model_text", "a.txt", "--out", "data"]
    output, _ = flannel(*words, "--vocab_size", "40", cwd=tmp_path)
    assert "--data.tokenizer_path" in output
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "flannel_model_corpus.txt",
        "flannel_tokenizer_chars.json",
        "live_dead_tokens.safetensors",
    ]
