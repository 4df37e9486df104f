"""What the how-to pages tell to type works as printed, on small data.

Each page is followed from top to bottom in one folder: lines of ```sh blocks that begin with `flannel-pl`,
and ```python blocks; one with a title is the file of that name. A line that ends in `# exit code 1`, or
`0 or 1`, has to end so. What a cluster is asked for is trained here.
"""

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flannel_pl.__main__ import main
from flannel_pl.training.cli import parser_of
from tests.conftest import SMALL_VOCAB_SIZE, SmallData

DOCS = Path(__file__).parents[2] / "docs"
CONFIGS = Path(__file__).parents[2] / "configs"
OWN = {"model.width", "model.init_args.width", "launch.background.slots", "trainer.callbacks.interval"}
"""Keys of classes and launchers that pages invent."""

PAGES = [pytest.param(page, marks=pytest.mark.slow, id=page.name) for page in sorted(DOCS.glob("howto-*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Returns language, or name, and text of the blocks of a page, in its order; those within lists, too."""
    found = re.findall(
        r"^([ ]*)```(sh|python)(?: title=\"([\w.]+)\")?\n(.*?)^\1```$",
        page.read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    return [
        (title or kind, "\n".join(line.removeprefix(dent) for line in text.splitlines()))
        for dent, kind, title, text in found
    ]


def commands(text: str) -> list[tuple[list[str], set[int]]]:
    """Returns the arguments of each `flannel-pl` in a block, and the exit codes that the page says."""
    told = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r" --launch\.(launcher slurm|detach true|slurm\.\w+ \S+)", "", line)
        if line.startswith("flannel-pl "):
            code = re.search(r"# exit code ([\d or]+)", line)
            codes = set(map(int, re.findall(r"\d+", code[1]))) if code else {0}
            told.append((shlex.split(line, comments=True)[1:], codes))
    return told


def small_configs(folder: Path, data: SmallData) -> None:
    """Writes configs of the names that pages use, which train a small model for a few steps."""
    (folder / "configs").mkdir()
    sizes = {"vocab_size": SMALL_VOCAB_SIZE, "hidden_dim": 16, "max_seq_len": 16}
    files = {"corpus_path": data.corpus, "tokenizer_path": data.tokenizer, "mask_path": data.masks}
    for config in CONFIGS.glob("*.yaml"):
        content: dict[str, Any] = yaml.safe_load(config.read_text("utf-8"))
        content["trainer"] |= {"max_steps": 12, "accelerator": "cpu"}
        content["model"] = {**content.get("model", {}), **sizes}
        content["data"] = {"batch_size": 4, **{key: str(path) for key, path in files.items()}}
        content["experiment"]["seeds"] = "42..43"
        (folder / "configs" / config.name).write_text(yaml.safe_dump(content), encoding="utf-8")


# What Lightning says of a reader's own Trainer and data.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(
    page: Path, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_configs(tmp_path, small_data)
    draw = np.random.default_rng(1)
    for name in ("A.txt", "B.txt", "M.txt"):  # enough different words for a vocabulary of 500
        words = ["".join(draw.choice(list("abcdefghij"), size=draw.integers(2, 7))) for _ in range(400)]
        text = " ".join(words[int(i)] for i in draw.zipf(1.4, 4000) % len(words))
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_lab", raising=False)
    names: dict[str, Any] = {"__name__": "__main__"}
    done = 0
    for kind, text in blocks(page):
        if kind not in ("sh", "python"):
            (tmp_path / kind).write_text(text, encoding="utf-8")
            continue
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(text, names)
            done += 1
            continue
        for words, codes in commands(text):
            assert main(words) in codes, shlex.join(words)
            done += 1
    assert done > 1


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_key_that_a_page_names_is_one(page: Path) -> None:
    known = {action.dest for action in parser_of()._actions}
    named = set(
        re.findall(
            r"--((?:experiment|launch|trainer|model|data|recorder)\.[\w.]*\w)", page.read_text("utf-8")
        )
    )
    of_classes = {key for key in named if key.startswith(("model.optimizer.", "model.lr_schedule."))}
    assert named - known - OWN - of_classes == set()
