"""The order of windows and what a batch holds."""

import pytest
import torch

from flannel_pl import FlannelData
from flannel_pl.models.flannel_data import WindowLoader, WindowOrder
from tests.conftest import SMALL_VOCAB_SIZE, SmallData


def test_an_epoch_has_every_window_once_and_the_next_another_order() -> None:
    order = WindowOrder(23, batch_size=5, seed=42)
    assert order.batches_per_epoch == 5
    first = torch.cat([order.batch(n) for n in range(5)])
    second = torch.cat([order.batch(n) for n in range(5, 10)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(23))
    assert not torch.equal(first, second)
    assert len(order.batch(4)) == 3
    assert torch.equal(first, torch.randperm(23, generator=torch.Generator().manual_seed(42)))


def test_any_batch_can_be_the_first() -> None:
    order = WindowOrder(23, batch_size=5, seed=42)
    in_turn = [order.batch(n) for n in range(12)]
    for n in (11, 3, 7):
        assert torch.equal(WindowOrder(23, batch_size=5, seed=42).batch(n), in_turn[n])


def test_the_loader_goes_on_where_its_state_says() -> None:
    loader = WindowLoader(WindowOrder(23, batch_size=5, seed=1))
    whole = [*loader, *loader]
    assert len(whole) == 10
    fresh = WindowLoader(WindowOrder(23, batch_size=5, seed=1))
    iterator = iter(fresh)
    for _ in range(3):
        next(iterator)
    state = fresh.state_dict()
    resumed = WindowLoader(WindowOrder(23, batch_size=5, seed=1))
    resumed.load_state_dict(state)
    rest = [*resumed, *resumed]
    assert len(rest) == 7
    assert all(torch.equal(one, other) for one, other in zip(rest, whole[3:], strict=True))


@pytest.mark.parametrize(("target_offset", "shift"), [(2, 1), (1, 0)])
def test_a_batch_is_windows_of_the_corpus(small_data: SmallData, target_offset: int, shift: int) -> None:
    data = FlannelData(
        corpus_path=small_data.corpus,
        tokenizer_path=small_data.tokenizer,
        batch_size=6,
        max_seq_len=16,
        vocab_size=SMALL_VOCAB_SIZE,
        target_offset=target_offset,  # type: ignore[arg-type]
        order_seed=3,
    )
    data.setup("fit")
    starts = next(iter(data.train_dataloader()))
    batch = data.transfer_batch_to_device(starts, torch.device("cpu"), 0)
    tokens = torch.tensor(data.load().tokens.astype("int64"))
    for row, start in enumerate(starts.tolist()):
        assert torch.equal(batch["input_ids"][row], tokens[start : start + 16])
        # The model itself shifts labels by one more.
        assert torch.equal(batch["labels"][row], tokens[start + shift : start + shift + 16])


def test_the_order_seed_is_the_runs_unless_it_is_given(small_data: SmallData) -> None:
    def first(order_seed: int | None) -> list[int]:
        data = FlannelData(
            corpus_path=small_data.corpus,
            tokenizer_path=small_data.tokenizer,
            vocab_size=SMALL_VOCAB_SIZE,
            order_seed=order_seed,
        )
        data.setup("fit")
        torch.manual_seed(1)  # as building the model with a seed of its own does
        starts: list[int] = next(iter(data.train_dataloader())).tolist()
        return starts

    torch.manual_seed(7)
    from_the_run = first(None)
    assert from_the_run == first(7)
    assert from_the_run != first(8)
