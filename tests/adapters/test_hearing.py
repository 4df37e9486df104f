"""What quantities hear: passes of training, once each; not what copies, recomputations and others do."""

import copy
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from flannel_pl import Recorder
from flannel_pl.errors import UserError
from flannel_pl.quantities import GradientNorms, HiddenMean, TokenProbability, UpdateNorms
from tests.adapters.plain import TABLE, Bigrams, Calls, loss_of, record, sgd, windows
from tests.adapters.test_three_trainers import columns_of


class Checkpointed(Bigrams):
    """Whose backward computes all of it again."""

    reentrant = False

    @override
    def forward(self, tokens_BT: Tensor) -> Tensor:
        def rest(x_BTD: Tensor) -> Any:
            return self.head(self.norm(x_BTD) * x_BTD)

        return checkpoint(rest, self.table(tokens_BT), use_reentrant=self.reentrant)  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("told_before", [False, True])
def test_what_a_backward_computes_again_is_not_heard(
    tmp_path: Path, reentrant: bool, told_before: bool
) -> None:
    if reentrant and told_before:
        pytest.skip("then nothing of it has gradients before the backward")
    net = Checkpointed()
    net.reentrant = reentrant
    optimizer = sgd(net)
    with Recorder(tmp_path, net, optimizer, parameters=TABLE, quantities=[Calls()]) as recorder:
        for window_BT in windows():
            optimizer.zero_grad()
            loss: Any = loss_of(net, window_BT)
            if told_before:
                recorder.forward(loss=loss)
            loss.backward()
            if not told_before:
                recorder.forward(loss=loss)
            recorder.before_step()
            optimizer.step()
            recorder.after_step()
    assert columns_of(tmp_path)["calls"][1:].tolist() == [1.0] * 4


def test_a_copy_of_the_model_is_not_heard_and_it_can_be_saved(tmp_path: Path) -> None:
    quantities = [Calls(), HiddenMean(), TokenProbability(of=None)]
    record(tmp_path / "alone", Bigrams(), quantities=quantities)
    net = Bigrams()

    def teach(_: int) -> None:
        average = copy.deepcopy(net)
        loss_of(average, windows()[0])
        saved = io.BytesIO()
        torch.save(net, saved)
        saved.seek(0)
        loss_of(torch.load(saved, weights_only=False), windows()[0])

    record(tmp_path / "with", net, before=teach, quantities=quantities)
    alone, with_copies = columns_of(tmp_path / "alone"), columns_of(tmp_path / "with")
    assert all(alone[name].tobytes() == with_copies[name].tobytes() for name in alone)


@pytest.mark.parametrize("in_order", [True, False])
def test_two_recorders_hear_one_stream_and_leave_the_module_as_it_was(tmp_path: Path, in_order: bool) -> None:
    net, folders = Bigrams(), [tmp_path / "a", tmp_path / "b"]
    optimizer = sgd(net)
    recorders = [
        Recorder(folder, net, optimizer, parameters=TABLE, quantities=[TokenProbability(of=None)])
        for folder in folders
    ]
    for one in recorders:
        one.__enter__()
    for window_BT in windows():
        optimizer.zero_grad()
        loss: Any = loss_of(net, window_BT)
        loss.backward()
        for one in recorders:
            one.before_step()
        optimizer.step()
        for one in recorders:
            one.after_step(loss=loss)
    for one in recorders if in_order else recorders[::-1]:
        one.__exit__(None, None, None)
    assert "publish" not in vars(net)
    assert not net.norm._forward_hooks
    a, b = map(columns_of, folders)
    assert a["token_probability"][1:].sum(axis=1) == pytest.approx(np.ones(4))
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.parametrize("is_warm", [False, True])
def test_a_compiled_model_is_heard_under_its_own_names(tmp_path: Path, is_warm: bool) -> None:
    def quantities() -> list[Any]:
        return [Calls(), HiddenMean(), TokenProbability(of=None), UpdateNorms()]

    record(tmp_path / "plain", Bigrams(), quantities=quantities())
    net = Bigrams()
    compiled: Any = torch.compile(net, backend="eager")
    if is_warm:
        compiled(windows()[0])
    record(tmp_path / "compiled", compiled, quantities=quantities())
    assert "publish" not in vars(net)
    found, expected = columns_of(tmp_path / "compiled"), columns_of(tmp_path / "plain")
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_a_model_that_is_not_in_training_mode_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"norm gave nothing, .* heard while the model is in training mode"):
        record(tmp_path, Bigrams().eval(), quantities=[HiddenMean()])


def test_probabilities_of_bfloat16_pieces_are_means_in_float32(tmp_path: Path) -> None:
    net, seen = Bigrams().bfloat16(), []

    def look(module: Any, inputs: Any, logits: Tensor) -> None:
        log_probs = torch.log_softmax(logits.detach().flatten(0, 1), dim=-1)
        seen.append(log_probs.double().numpy())

    net.head.register_forward_hook(look)
    record(tmp_path, net, quantities=[TokenProbability(of=None)])
    expected = [np.exp(log_probs).mean(axis=0) for log_probs in seen]
    np.testing.assert_allclose(columns_of(tmp_path)["token_probability"][1:], expected, rtol=1e-6)


def test_norms_are_those_of_float64_and_of_parameters_that_are_trained_later(tmp_path: Path) -> None:
    net, weights, gradients = Bigrams().double(), [], []
    net.head.requires_grad_(False)

    def take(step: int) -> None:
        weights.append([one.detach().numpy().copy() for one in net.parameters()])
        if step == 1:
            net.head.requires_grad_(True)
        gradients.append([0.0 if one.grad is None else one.grad.norm().item() for one in net.parameters()])

    record(tmp_path, net, sgd(net, 1e-9), before=take, quantities=[UpdateNorms(), GradientNorms()])
    weights.append([one.detach().numpy() for one in net.parameters()])
    moved = [
        [np.linalg.norm(after - before) for before, after in zip(*pair, strict=True)]
        for pair in itertools.pairwise(weights)
    ]
    columns = columns_of(tmp_path)
    np.testing.assert_allclose(columns["update_norms"][1:], moved, rtol=1e-6)
    np.testing.assert_allclose(columns["gradient_norms"][1:], gradients, rtol=1e-6)
    assert not columns["update_norms"][1, 3:].any()
    assert columns["update_norms"][4].all()
