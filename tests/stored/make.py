"""Makes the folders of experiments in this folder; run by hand, once for every schema that we have to read.

    python -m tests.stored.make tests/stored/schema1 /tmp/lab

The second path is where they are made: it stands in what they say of themselves. Those of schema 1 were made
by commit 5a6bc5c; a version that writes another schema does not make them any more.
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np

from flannel_pl.corpus.prepare import prepare
from tests.stored.folders import DATA_FILES, EXPERIMENTS, arguments


def main(archives: Path, work: Path) -> None:
    work.mkdir(parents=True)
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefgh"), size=draw.integers(2, 6))) for _ in range(60)]
    text = " ".join(words[int(i)] for i in draw.zipf(1.4, 1000) % len(words))
    (work / "model.txt").write_text(text, encoding="utf-8")
    (work / "tokenizer.txt").write_text(f"{text} XYZ XYZ XYZW XYZW", encoding="utf-8")
    prepare(tokenizer_text=[work / "tokenizer.txt"], model_text=work / "model.txt", out=work, vocab_size=40)
    _pack(archives / "data.tar.gz", work, DATA_FILES)
    for name, experiment in EXPERIMENTS.items():
        print(name, flush=True)
        command = [sys.executable, "-m", "flannel_pl", "fit", *arguments(name)]
        process = subprocess.Popen(command, cwd=work, stdin=subprocess.DEVNULL, start_new_session=True)
        if experiment.cut_in_run is None:
            assert process.wait() == 0
        else:
            _wait_for_checkpoint(process, work / "runs" / name / f"run_{experiment.cut_in_run}")
            if experiment.cut_by is signal.SIGKILL:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.send_signal(experiment.cut_by)
            assert process.wait() in (-signal.SIGKILL, 128 + experiment.cut_by)
            time.sleep(1)  # its other processes end, too
        _pack(archives / f"{name}.tar.gz", work, [f"runs/{name}"])


def _wait_for_checkpoint(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    while not list(folder.glob("checkpoint*.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)


def _pack(archive: Path, folder: Path, names: "list[str] | tuple[str, ...]") -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)

    def without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if info.name.endswith("log.txt"):  # nothing reads it
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(archive, "w:gz", compresslevel=9) as file:
        for name in names:
            file.add(folder / name, name, filter=without_owner)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
    shutil.rmtree(sys.argv[2])
