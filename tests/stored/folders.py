"""Which experiments are kept here, and with which command each was made."""

import signal
from dataclasses import dataclass

DATA_FILES = ("flannel_model_corpus.txt", "flannel_tokenizer_chars.json", "live_dead_tokens.safetensors")

_SMALL = (
    *("--data.corpus_path", DATA_FILES[0], "--data.tokenizer_path", DATA_FILES[1]),
    *("--data.mask_path", DATA_FILES[2], "--data.batch_size", "2"),
    *("--model.vocab_size", "40", "--model.hidden_dim", "4", "--model.max_seq_len", "8"),
    *("--model.n_layer", "1", "--model.n_head", "1"),
    *("--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1.0"),
    *("--trainer.accelerator", "cpu", "--experiment.output_dir", "runs"),
)


@dataclass(frozen=True)
class Stored:
    """One experiment."""

    options: tuple[str, ...]
    num_runs: int
    cut_in_run: int | None = None
    """The run that was training when the command was ended."""

    cut_by: signal.Signals = signal.SIGTERM


_SEEDS = ("--experiment.seeds", "42..43")
_STEPS = ("--trainer.max_steps", "6")
_THREE = (
    *("--experiment.seeds", "42..44", "--trainer.max_steps", "150", "--recorder.every_n_steps", "5"),
    *("--launch.devices", "1", "--launch.runs_per_device", "1", "--launch.checkpoint_every", "30"),
)

EXPERIMENTS = {
    "gathered": Stored((*_SEEDS, *_STEPS, "--experiment.keep_shards", "false"), 2),
    "shards": Stored((*_SEEDS, *_STEPS, "--experiment.gather", "none"), 2),
    "index": Stored((*_SEEDS, *_STEPS, "--experiment.gather", "index"), 2),
    "swept": Stored(
        (
            *_STEPS,
            "--experiment.sweep",
            '{"model.learning_rate": [0.001, 0.003]}',
            "--experiment.seeds",
            "42",
        ),
        2,
    ),
    "some": Stored(
        (
            *("--recorder.tokens", "dead", "--recorder.every_n_steps", "2", "--model.param_dtype", "float32"),
            *(
                "--recorder.tensors",
                "[embeddings, momentum, losses]",
                "--recorder.dtypes.momentum",
                "bfloat16",
            ),
            *("--trainer.max_steps", "30", "--trainer.max_time", "00:01:00:00", "--trainer.max_epochs", "1"),
            *("--trainer.limit_train_batches", "9", "--trainer.precision", "32-true"),
        ),
        1,
    ),
    "stopped": Stored((*_THREE, "--experiment.keep_shards", "false"), 3, cut_in_run=1),
    "killed": Stored(_THREE, 3, cut_in_run=1, cut_by=signal.SIGKILL),
}


def arguments(name: str) -> list[str]:
    """Returns the arguments of `flannel-pl fit` that made an experiment."""
    return [*_SMALL, *EXPERIMENTS[name].options, "--experiment.name", name]
