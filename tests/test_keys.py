"""What is known of keys before anything heavy is imported: it is the parser's, and it takes no time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from flannel_pl.cli.keys import FILE, WIDTH, asked_help, made_of_the_code, refuse_unknown
from flannel_pl.errors import UserError

NOTHING_HEAVY = (
    "import sys\n"
    "from flannel_pl.__main__ import main\n"
    "code = main(sys.argv[1:])\n"
    "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy'} & set(sys.modules)\n"
    "print(sorted(heavy), file=sys.stderr)\n"
    "sys.exit(code)\n"
)


def test_the_file_is_the_parsers() -> None:
    there, expected = json.loads(FILE.read_text()), made_of_the_code()
    if there["lightning"] != expected["lightning"]:
        pytest.skip("it was made with another version of Lightning, whose keys are left to the parser")
    assert there == expected, "make it anew: python -m flannel_pl.cli.keys"


def test_what_is_refused_is_refused_by_the_parser_in_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: {hiden_dim: 3}\n")
    mistakes = [["--model.lr", "3"], ["--model.lr=3"], ["--batch_size", "3"], ["--trainer.foo", "3"]]
    mistakes += [
        ["--launch.foo", "3"],
        ["--recorder.tensor=x"],
        ["--modle.n_head", "1"],
        ["--config", str(config)],
    ]
    for words in mistakes:
        assert main(["fit", *words]) == 2
        quick = capsys.readouterr().err
        with monkeypatch.context() as patch:
            patch.setattr("flannel_pl.cli.keys.refuse_unknown", lambda words: None)
            assert main(["fit", *words]) == 2
        assert capsys.readouterr().err == quick, words


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "there is none.yaml"],
        ["--config={model: {n_layer: 3}}"],
        [
            "--trainer.logger.save_dir",
            "x",
            "--trainer.callbacks+=EMAWeightAveraging",
            "--trainer.logger+=CSVLogger",
        ],
        ["--recorder.tensors+=losses", "--launch.slurm.foo=3", "--data.max_seq_len=3"],
        ["--model", "my_lab.Net", "--model.anything", "3"],
        ["--model.class_path", "my_lab.Net", "--model.init_args.anything=3"],
        ["--config={model: {class_path: my_lab.Net, init_args: {anything: 3}}}", "--model.more=3"],
        ["--model=small.yaml", "--print_config", "--seed_everything=3"],
    ],
)
def test_what_may_be_right_is_left_to_the_parser(words: list[str]) -> None:
    refuse_unknown(words)


def test_a_key_of_another_lightning_is_left_to_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--trainer\.new_in_9 1"):
        refuse_unknown(["--trainer.new_in_9", "1"])
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.0")
    refuse_unknown(["--trainer.new_in_9", "1"])


@pytest.mark.parametrize("verb", ["fit", "plan"])
def test_help_fits_on_a_page(verb: str) -> None:
    text = asked_help(verb, "does it", ["--help"])
    assert text is not None
    lines = text.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].startswith(f"usage: flannel-pl {verb} ")
    for key in (
        "--experiment.seeds 42 ",
        "--model.learning_rate 0.001 ",
        "--recorder.tensors embeddings,... ",
    ):
        assert any(key in line for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["fit", "--help"], 0, "usage: flannel-pl fit"),
        (["help", "plan"], 0, "usage: flannel-pl plan"),
        (["fit", "--help.trainer"], 0, "--trainer.max_epochs null"),
        (["plan", "--help.all"], 0, "--trainer.max_epochs null"),
        (
            ["fit", "--help.train"],
            2,
            "there is no such group; they are experiment, launch, model, data,",
        ),
        (["fit", "--model.lr", "3"], 2, "did you mean model.learning_rate or model.lr_schedule?"),
        (
            ["fit", "--experiment.sweep", "{model.lr: [1]}"],
            2,
            "experiment.sweep has model.lr, which cannot be swept; did you mean model.learning_rate",
        ),
        (
            ["plan", "--config", "{experiment: {sweep: {modell.lr: [1], data.batch: [2]}}}"],
            2,
            "data.batch, which",
        ),
        (["-V"], 0, "flannel-pl 0."),
    ],
)
def test_it_takes_no_imports(words: list[str], code: int, said: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", NOTHING_HEAVY, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_no_option_is_taken_for_the_beginning_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--token", "dead", "x"]) == 2
    assert "unrecognized arguments: --token" in capsys.readouterr().err
