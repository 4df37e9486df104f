import pytest

from flannel_pl.errors import UserError
from flannel_pl.recording.formats.schema import RecordingSchema
from tests.recording.recording_samples import make_schema


def test_columns_follow_the_format() -> None:
    schema = make_schema(tensors=["losses", "embeddings", "logits"], dtypes={"logits": "float32"})
    assert [(c.name, c.dtype, c.sizes, c.row_bytes) for c in schema.columns] == [
        ("recorded_steps", "I64", (), 8),
        ("embeddings", "BF16", (30, 4), 240),
        ("logits", "F32", (30,), 120),
        ("losses", "BF16", (), 2),
        ("losses_f32", "F32", (), 4),
        ("learning_rates", "F32", (), 4),
        ("grad_norms", "F32", (), 4),
    ]
    assert schema.checksum_column.sizes == (7,)
    assert schema.row_bytes == 8 + 240 + 120 + 2 + 12 + 7 * 8


@pytest.mark.parametrize(
    ("max_steps", "every_n_steps", "rows"), [(1, 1, 2), (10, 3, 4), (2, 3, 1), (1000, 1, 1001)]
)
def test_number_of_rows(max_steps: int, every_n_steps: int, rows: int) -> None:
    assert make_schema(max_steps=max_steps, every_n_steps=every_n_steps).num_rows == rows


def test_one_flannel3_run_has_the_size_that_the_design_names() -> None:
    schema = make_schema(num_tokens=10_000, hidden_dim=64, max_steps=1000)
    ours = 1001 * (3 * 4 + 10 * 8)  # three float32 columns and ten checksums a row
    assert schema.num_rows * schema.row_bytes == 5_145_150_010 + ours


def test_all_mistakes_come_in_one_message() -> None:
    with pytest.raises(UserError) as caught:
        make_schema(
            tensors=["embedings", "losses", "losses"], dtypes={"grads": "int8"}, every_n_steps=0, max_steps=0
        )
    message = str(caught.value)
    for part in (
        "recorder.tensors has 'embedings', expected some of embeddings, grads, momentum, variance, logits, "
        "losses; did you mean embeddings?",
        "recorder.tensors names losses 2 times, expected once",
        "recorder.dtypes has 'grads', which is not in recorder.tensors",
        "recorder.dtypes has 'int8' for grads, expected one of bfloat16, float32, float16",
        "recorder.every_n_steps is 0, expected at least 1",
        "trainer.max_steps is 0, expected at least 1",
    ):
        assert part in message


def test_unlike_any_name_gets_no_guess() -> None:
    with pytest.raises(UserError, match=r"recorder\.tensors has 'xyz'") as caught:
        make_schema(tensors=["xyz"])
    assert "did you mean" not in str(caught.value)


def test_prefix_goes_before_every_key() -> None:
    specs = make_schema(key_prefix="run_3_").specs()
    assert len(specs) == 11
    assert all(key.startswith("run_3_") for key in specs)


def test_a_bare_string_is_one_name() -> None:
    assert make_schema(tensors="embeddings") == make_schema(tensors=["embeddings"])
    with pytest.raises(UserError, match=r"recorder\.tensors has 'logit', .* did you mean logits\?"):
        make_schema(tensors="logit")


def test_equal_wishes_give_equal_schemas_whatever_their_order() -> None:
    assert make_schema(tensors=["grads", "losses"]) == make_schema(tensors=["losses", "grads"])
    assert isinstance(make_schema(), RecordingSchema)
