"""`run["E"]`: what belongs to a parameter, whatever it is called in the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flannel_pl


def record(folder: Path, **options: Any) -> flannel_pl.Recorder:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    with flannel_pl.Recorder(folder, net, optimizer, **options) as recorder:
        loss = net(torch.ones(4, 2)).square().mean()
        loss.backward()
        recorder.before_step()
        optimizer.step()
        recorder.after_step(loss=loss)
    return recorder


def run_of(folder: Path) -> Any:
    return flannel_pl.open_recording(folder).run(0)


PARTS = ("values", "grads", "momentum", "variance")


def test_the_first_by_its_alias_its_name_and_as_E(tmp_path: Path) -> None:
    record(tmp_path, parameters={"table": "0.weight", "head": "1.weight"})
    run = run_of(tmp_path)
    for name in ("table", "0.weight", "E"):
        assert run[name].names[:4] == PARTS, name
        assert np.array_equal(run[name].values[:], run.embeddings[:])
        assert np.array_equal(run[name]["grads"][:], run.grads[:])
    for name in ("head", "1.weight"):
        assert set(run[name].names) == set(PARTS)
        assert np.array_equal(run[name].values[:], run["head/values"][:])
    assert {"E", "head", "embeddings"} <= set(run._ipython_key_completions_())
    assert {"values", "momentum"} <= set(dir(run["E"]))
    assert "embeddings" in dir(run)


def test_an_alias_that_begins_as_another_does(tmp_path: Path) -> None:
    record(tmp_path, parameters={"a": "0.weight", "a/b": "1.weight"})
    run = run_of(tmp_path)
    assert run["a"].values.shape == (2, 3, 2)
    assert run["a/b"].values.shape == (2, 2, 3)


def test_where_none_is_bare_the_first_is_the_first(tmp_path: Path) -> None:
    record(tmp_path, parameters="all")
    run = run_of(tmp_path)
    assert np.array_equal(run["E"].values[:], run["0.weight/values"][:])
    assert run["1.bias"].values.shape == (2, 2)


def test_where_nothing_of_a_parameter_is_recorded(tmp_path: Path) -> None:
    record(tmp_path, parameters={"E": "0.weight"}, tensors=["losses"])
    with pytest.raises(KeyError, match=r"run 0 has no 'E'; it has "):
        run_of(tmp_path)["E"]


def test_what_there_is_not(tmp_path: Path) -> None:
    record(tmp_path, parameters={"table": "0.weight"})
    run = run_of(tmp_path)
    with pytest.raises(KeyError, match=r"run 0 has no 'tabel'; it has .*embeddings.*, E"):
        run["tabel"]
    with pytest.raises(
        AttributeError, match=r"table has no 'moment'; it has values, grads, momentum, variance"
    ):
        run["table"].moment  # noqa: B018
    assert "<table>" in run._repr_html_()
    assert "<table>" in run["table"]._repr_html_()


def test_foreign_names_are_text_in_html(tmp_path: Path) -> None:
    record(tmp_path, parameters={"<script>": "0.weight", "<b>": "1.weight"})
    shown = run_of(tmp_path)._repr_html_() + flannel_pl.open_recording(tmp_path)._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;b&gt;/values" in shown
