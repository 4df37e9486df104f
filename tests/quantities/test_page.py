"""The example of docs/howto-own-quantity.md does what it says, and docs/quantities.md names what there is."""

import re
from pathlib import Path
from typing import Any

import numpy as np

import flannel_pl
import flannel_pl.quantities
from flannel_pl.quantities import Quantity
from tests.quantities.test_built_in import train

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "quantities.md").read_text(encoding="utf-8")
HOWTO = (DOCS / "howto-own-quantity.md").read_text(encoding="utf-8")


def test_the_example(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "my_lab"}
    (example,) = re.findall(r"```python title[^\n]*\n(.*?)```", HOWTO, re.DOTALL)
    exec(example, names)
    train(tmp_path, [names["Extent"]()])
    with flannel_pl.open_recording(tmp_path) as recording:
        run = recording.run(0)
        assert run.columns["extent"].quantity == "my_lab.Extent"
        expected = np.ptp(run.embeddings[:].astype(np.float32), axis=1)
        assert run.extent[:].tobytes() == expected.tobytes()


def test_every_built_in_is_on_the_page() -> None:
    there = {
        name
        for name in flannel_pl.quantities.__all__
        if (kind := getattr(flannel_pl.quantities, name)) is not Quantity and issubclass(kind, Quantity)
    }
    assert set(re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)) == there
