"""A recording of some tokens has these only: where they stand is asked, and a wrong place is told."""

from pathlib import Path

import pytest

from flannel_pl import open_recording
from flannel_pl.__main__ import main
from tests.conftest import SmallData


def test_where_tokens_stand_in_a_recording_of_some(small_data: SmallData, tmp_path: Path) -> None:
    words = ["fit", *small_data.arguments, "--trainer.max_steps", "2"]
    words += ["--experiment.output_dir", str(tmp_path)]
    assert main([*words, "--recorder.tokens", "dead", "--experiment.name", "dead"]) == 0
    assert main([*words, "--experiment.name", "all"]) == 0
    with open_recording(tmp_path / "dead") as some, open_recording(tmp_path / "all") as everything:
        dead, run, whole = some.masks["dead_indices"], some.run(0), everything.run(0)
        token = int(dead[-1])
        assert run.rows_of(token) == len(dead) - 1
        assert whole.rows_of([3, token]).tolist() == [3, token]
        wanted = run.embeddings[:, run.rows_of(dead[::-2])]
        assert wanted.tobytes() == whole.embeddings[:, dead[::-2]].tobytes()
        live = int(some.masks["live_indices"][0])
        with pytest.raises(KeyError, match=rf"has {len(dead)} tokens recorded, and not {live}"):
            run.rows_of([token, live])
        with pytest.raises(KeyError, match="has 100 tokens recorded, and not 100"):
            whole.rows_of(100)
        said = rf"shape \(3, {len(dead)}, 16\).*run.rows_of\(tokens\) gives the places"
        with pytest.raises(IndexError, match=said):
            run.embeddings[0, 99]
        said = r"has the shape \(3, 100, 16\): index 100 is out of bounds"
        with pytest.raises(IndexError, match=said) as error:
            whole.embeddings[0, 100]
        assert "rows_of" not in str(error.value)
