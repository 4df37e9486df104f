"""In which types runs compute and are recorded: said, and never silently another."""

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.recording.arithmetic import Arithmetic
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.info import describe_recording
from tests.conftest import SmallData

FLOAT32 = ["--model.param_dtype", "float32"]


def words(verb: str, data: SmallData, folder: Path, *more: str) -> list[str]:
    command = [verb, *data.arguments, "--experiment.output_dir", str(folder), "--experiment.name", "types"]
    return [*command, "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false", *more]


PLANS = [
    ([], ["arithmetic  weights and optimizer state bfloat16, autocast bfloat16"]),
    (FLOAT32, ["arithmetic  weights and optimizer state float32, autocast bfloat16"]),
    (
        [*FLOAT32, "--trainer.precision", "32-true"],
        ["arithmetic  weights and optimizer state float32, no autocast"],
    ),
    (["--trainer.precision", "null"], ["arithmetic  weights and optimizer state bfloat16, no autocast"]),
    (
        [*FLOAT32, "--recorder.dtypes", "{embeddings: bfloat16, grads: float16, momentum: float64}"],
        [
            "arithmetic  weights and optimizer state float32, autocast bfloat16",
            "rounded     embeddings from float32 to bfloat16, grads from float32 to float16",
        ],
    ),
    (
        ["--experiment.sweep", '{"model.param_dtype": ["bfloat16", "float32"]}'],
        [
            "arithmetic  weights and optimizer state bfloat16, autocast bfloat16 (runs 0)",
            "arithmetic  weights and optimizer state float32, autocast bfloat16 (runs 1)",
        ],
    ),
]


@pytest.mark.parametrize(("more", "lines"), PLANS, ids=[" ".join(case[0])[-40:] for case in PLANS])
def test_a_plan_says_it(
    small_data: SmallData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    lines: list[str],
) -> None:
    assert main(words("plan", small_data, tmp_path, *more)) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith(("arithmetic", "rounded"))] == lines


def test_what_is_recorded_has_its_own_type(small_data: SmallData, tmp_path: Path) -> None:
    sweep = ["--experiment.sweep", '{"model.param_dtype": ["bfloat16", "float32"]}']
    assert main(words("fit", small_data, tmp_path, *sweep, "--launch.threads_per_run", "1")) == 0
    gathered = tmp_path / "types" / "types.safetensors"
    with safe_open(gathered, framework="pt") as file:
        for run, expected in ((0, "torch.bfloat16"), (1, "torch.float32")):
            for name in ("embeddings", "grads", "momentum", "variance"):
                assert str(file.get_tensor(f"run_{run}_{name}").dtype) == expected, name
            assert str(file.get_tensor(f"run_{run}_logits").dtype) == "torch.bfloat16"  # of the autocast
            assert str(file.get_tensor(f"run_{run}_losses").dtype) == "torch.bfloat16"
    assert verify(tmp_path / "types").ok
    with flannel_pl.open_recording(gathered) as recording:
        assert recording.run(1).metadata["own_dtypes"]["embeddings"] == "float32"
    assert "rounded" not in describe_recording(gathered)


def test_what_is_rounded_is_named(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*FLOAT32, "--recorder.dtypes", "{embeddings: bfloat16}"]
    assert main(words("fit", small_data, tmp_path, *more)) == 0
    assert "rounded     embeddings from float32 to bfloat16" in capsys.readouterr().out.splitlines()
    file = tmp_path / "types" / "types.safetensors"
    assert "rounded: embeddings from float32 to bfloat16" in describe_recording(file)
    assert verify(file).ok


REFUSED = [
    (
        "--trainer.precision 32-true",
        r"trainer.precision 32-true computes in the type that the weights have, and",
    ),
    (
        "--trainer.precision 32",
        r"model.param_dtype is bfloat16, so this would be bf16-true; for float32 throughout",
    ),
    (
        '--experiment.sweep {"trainer.precision":["bf16-mixed","bf16"]}',
        r'has {"trainer.precision": "bf16-mixed"} and {"trainer.precision": "bf16"}, which are the same',
    ),
    (
        '--experiment.sweep {"trainer.precision":[null,"bf16-true"]}',
        r"which are the same; name it once",
    ),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_what_would_not_be_what_it_is_called_is_refused(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, message: str
) -> None:
    for verb in ("plan", "fit"):
        assert main(words(verb, small_data, tmp_path, *more.split(" ", 1))) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "types").exists()


@pytest.mark.parametrize("precision", [None, "32", 32, "32-true"])
def test_words_of_lightning_for_one_arithmetic(precision: Any) -> None:
    assert str(Arithmetic.of("float32", precision)) == "weights and optimizer state float32, no autocast"
