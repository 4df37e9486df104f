"""In a notebook: the tour runs to its end, and what it shows is text, HTML and pictures."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[2] / "examples" / "tour.ipynb"
v4: Any = nbformat.v4

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def texts(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield from ([output.text] if "text" in output else [])
            yield from (str(x) for kind, x in output.get("data", {}).items() if kind.startswith("text/"))


@pytest.fixture
def quiet_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel that writes nothing into anybody's home."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(TOUR.parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that run notebooks
@pytest.mark.usefixtures("quiet_kernel")
def test_the_tour(tmp_path: Path) -> None:
    notebook: Any = nbformat.read(TOUR, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = list(texts(notebook))
    assert not [text for text in shown if CONTROL.search(text)]
    progress = notebook.cells[1].outputs
    assert [output.output_type for output in progress] == ["display_data"], "one table, in one place"
    assert "2 of 2 runs done" in progress[0].data["text/html"]
    assert "\x1b" not in progress[0].data["text/html"]
    assert any("Experiment tour" in text for text in shown)
    assert any("hidden_dimension" in text and "did you mean model.hidden_dim?" in text for text in shown)
    assert (tmp_path / "runs" / "tour" / "tour.safetensors").exists()
    assert [output.output_type for cell in notebook.cells for output in cell.get("outputs", [])].count(
        "error"
    ) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("quiet_kernel")
def test_a_kernel_that_is_interrupted(tmp_path: Path) -> None:
    notebook = v4.new_notebook()
    notebook.cells = [
        v4.new_code_cell(
            "import _thread, threading, time, pathlib, flannel_pl\n"
            "def interrupt():\n"
            "    while not list(pathlib.Path('runs/x').glob('run_*/checkpoint*')):\n"
            "        time.sleep(0.1)\n"
            "    _thread.interrupt_main()\n"
            "threading.Thread(target=interrupt, daemon=True).start()\n"
            "try:\n"
            "    flannel_pl.fit(\n"
            "        experiment={'name': 'x'}, trainer={'max_steps': 10**5, 'accelerator': 'cpu'},\n"
            "        model={'hidden_dim': 8, 'n_layer': 1, 'max_seq_len': 8}, data={'batch_size': 2},\n"
            "        recorder={'tensors': ['losses']}, launch={'checkpoint_every': 5})\n"
            "except KeyboardInterrupt as error:\n"
            "    print('interrupted:', error)\n"
        ),
        v4.new_code_cell("flannel_pl.status('runs/x').runs[0].state"),
    ]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "interrupted: stopped by SIGINT; nothing is lost, go on with the same call\n" in list(
        texts(notebook)
    )
    assert notebook.cells[1].outputs[0].data["text/plain"] == "'stopped'"
