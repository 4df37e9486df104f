"""TinyLM beside torch's own encoder, and its windows and phantom tokens beside numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flannel_pl
from flannel_pl import FlannelData
from flannel_pl.__main__ import main
from flannel_pl.errors import UserError
from flannel_pl.models import TinyLM
from flannel_pl.recording.checking.verify import verify
from tests.conftest import SmallData

SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_dim": 8, "max_seq_len": 12, "param_dtype": "float32"}


def test_it_has_as_many_parameters_as_upstreams() -> None:
    model = TinyLM()
    assert sum(one.numel() for one in model.parameters()) == 748_288
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


def test_its_logits_are_those_of_torchs_encoder() -> None:
    model = TinyLM(**SMALL, init_seed=3)
    layer = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
    state = {name.replace("blocks.", "layers."): value for name, value in model.state_dict().items()}
    encoder.load_state_dict({name: one for name, one in state.items() if name.startswith(("layers", "norm"))})
    ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))
    inside = model.embedding.weight[ids] + model.positions.weight
    mask = torch.full((12, 12), float("-inf")).triu(1)
    expected = encoder(inside, mask=mask) @ model.embedding.weight.T
    torch.testing.assert_close(model(ids), expected)
    changed = ids.clone()
    changed[:, 7:] = 0
    torch.testing.assert_close(model(changed)[:, :7], expected[:, :7])  # nothing sees what comes later


def test_blocks_are_drawn_one_by_one_and_scales_are_kept() -> None:
    model = TinyLM(hidden_dim=64, init_scale=0.05, init_seed=1, param_dtype="float32")
    assert float(model.embedding.weight.detach().std()) == pytest.approx(0.05, rel=0.01)
    assert float(model.positions.weight.detach().std()) == pytest.approx(0.05, rel=0.03)
    blocks: Any = model.blocks
    assert not torch.equal(*(block.linear1.weight for block in blocks))
    again = TinyLM(hidden_dim=64, init_scale=0.05, init_seed=1, param_dtype="float32")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_its_loss_is_on_logits_in_the_weights_type() -> None:
    model = TinyLM(**{**SMALL, "param_dtype": "bfloat16"}, init_seed=3)
    ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    out = model.training_step({"input_ids": ids, "labels": ids}, 0)
    assert out["loss"].dtype == torch.bfloat16
    exact = F.cross_entropy(model(ids)[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten())
    assert float(out["loss"].detach()) == pytest.approx(float(exact.detach()), rel=2**-7)
    assert torch.equal(out["logits"], model(ids)[0, -1])


def test_mistakes_are_named_at_once() -> None:
    with pytest.raises(
        UserError, match=r"model.n_layer is 0.*hidden_dim 64 is not divisible.*weight_decay is -1"
    ):
        TinyLM(n_layer=0, n_head=5, weight_decay=-1)


def data_of(small: SmallData, **more: Any) -> FlannelData:
    files = {"corpus_path": small.corpus, "tokenizer_path": small.tokenizer, "vocab_size": 100}
    data = FlannelData(**{**files, "max_seq_len": 16, "batch_size": 4, "order_seed": 5, **more})
    data.setup("fit")
    return data


@pytest.mark.parametrize("offset", [1, 2])
def test_disjoint_windows_are_the_texts_pieces(small_data: SmallData, offset: Any) -> None:
    data = data_of(small_data, windows="disjoint", target_offset=offset)
    tokens = np.asarray(data.load().tokens, dtype=np.int64)
    pieces = tokens[: len(tokens) // 16 * 16].reshape(-1, 16)
    count = (len(tokens) - (offset - 1)) // 16
    assert data.order.num_windows == count
    batch = data.transfer_batch_to_device(torch.arange(count), torch.device("cpu"), 0)
    np.testing.assert_array_equal(batch["input_ids"], pieces[:count])
    labels = np.stack([tokens[16 * i + offset - 1 :][:16] for i in range(count)])
    np.testing.assert_array_equal(batch["labels"], labels)


def test_the_last_batch_may_be_left_out(small_data: SmallData) -> None:
    whole = data_of(small_data, windows="disjoint", batch_size=7)
    dropped = data_of(small_data, windows="disjoint", batch_size=7, drop_last=True)
    count = whole.order.num_windows
    assert count % 7
    assert (len(whole.train_dataloader()), len(dropped.train_dataloader())) == (-(-count // 7), count // 7)
    sizes = [len(batch) for batch in dropped.train_dataloader()]
    assert set(sizes) == {7}
    # The next epoch is another permutation, from its first batch on.
    assert not torch.equal(dropped.order.batch(0), dropped.order.batch(len(sizes)))


def test_phantoms_are_dead_and_recorded(small_data: SmallData, tmp_path: Path) -> None:
    words = ["fit", *small_data.arguments, "--experiment.output_dir", str(tmp_path), "--experiment.name", "x"]
    words += ["--model.vocab_size", "107", "--data.phantom_tokens", "7", "--trainer.max_steps", "3"]
    assert main(words) == 0
    assert verify(tmp_path / "x").ok
    with flannel_pl.open_recording(tmp_path / "x") as recording:
        assert recording.run(0).embeddings.shape == (4, 107, 16)
        assert set(range(100, 107)) <= set(recording.masks["dead_indices"])
        W = recording.run(0).embeddings[:, 100:].astype(np.float64)
        assert (W[0] != W[3]).any(axis=1).all()  # they move as all that never occur do
        assert len(recording.vocabulary) == 100
    data = data_of(small_data, vocab_size=107, phantom_tokens=7)
    np.testing.assert_array_equal(data.token_sets["phantom"], np.arange(100, 107))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data.phantom_tokens", "-1"], "data.phantom_tokens is -1, expected 0 or more"),
        (["--data.windows", "apart"], "data.windows is apart, expected overlapping or disjoint"),
    ],
)
def test_refusals(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    words = [
        "plan",
        *small_data.arguments,
        "--experiment.output_dir",
        str(tmp_path),
        "--trainer.max_steps",
        "2",
    ]
    assert main([*words, *more]) == 2
    assert said in capsys.readouterr().err


def test_the_built_in_text_and_phantoms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quickstart", "--data.phantom_tokens", "100"]) == 2
    assert "model.vocab_size counts 100 phantom tokens" in capsys.readouterr().err
