"""A key that there is not is followed by the one that was meant."""

import pytest

from flannel_pl.hints import meant
from flannel_pl.training.cli import parser_of, resolve

KEYS = [key for key in list(parser_of().get_defaults(skip_validation=True).keys()) if "." in key]


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        ("model.lr", "; did you mean model.learning_rate or model.lr_schedule?"),
        ("model.optim", "; did you mean model.optimizer?"),
        ("model.warmup", "; did you mean model.warmup_steps?"),
        ("model.weight", "; did you mean model.weight_decay?"),
        ("model.hiden_dim", "; did you mean model.hidden_dim?"),
        ("model.num_layers", "; did you mean model.n_layer?"),
        ("model.max_steps", "; did you mean trainer.max_steps?"),
        ("model.batch_size", "; did you mean data.batch_size?"),
        ("batch_size", "; did you mean data.batch_size?"),
        ("seed", "; did you mean experiment.seeds?"),
        ("trainer.epochs", "; did you mean trainer.max_epochs?"),
        ("launch.retries", "; did you mean launch.max_retries?"),
        ("modle.n_head", "; did you mean model.n_head?"),
        ("experiment.output", "; did you mean experiment.output_dir?"),
        ("model.foo", ""),
        ("xyz", ""),
    ],
)
def test_the_key_that_was_meant(unknown: str, said: str) -> None:
    hint = meant(unknown, KEYS)
    assert hint.startswith(said) if said else hint == ""


@pytest.mark.parametrize("text", ["embeddings,losses", "embeddings, losses", "[embeddings, losses]"])
def test_a_list_by_commas(text: str) -> None:
    assert resolve(["--recorder.tensors", text])["recorder"]["tensors"] == ["embeddings", "losses"]
    assert resolve([f"--recorder.tensors={text}"])["recorder"]["tensors"] == ["embeddings", "losses"]


def test_a_list_of_one_and_none() -> None:
    assert resolve(["--recorder.tensors", "losses"])["recorder"]["tensors"] == ["losses"]
    assert resolve(["--recorder.live", "speed"])["recorder"]["live"] == ["speed"]
    assert resolve(["--recorder.live", "null"])["recorder"]["live"] is None
    found = resolve(["--recorder.quantities", "HiddenMean,GradientNorms"])["recorder"]["quantities"]
    assert [one["class_path"] for one in found] == [
        "flannel_pl.quantities.HiddenMean",
        "flannel_pl.quantities.GradientNorms",
    ]
