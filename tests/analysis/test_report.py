"""The report of real files: what it writes, says and draws; of whole recordings and of poor ones."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import flannel_pl
from flannel_pl.analysis.measuring.divergence import measure_divergence
from flannel_pl.analysis.reporting.report import Report, home_of, report
from flannel_pl.errors import UserError
from tests.analysis.browser import check_drawing, visit
from tests.analysis.samples import save_recording, walk
from tests.mounting import read_only
from tests.recording.recording_samples import make_experiment

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TABLES = {
    *("metrics.csv", "tokens.csv", "steps_dead.csv", "steps_live.csv", "steps_all.csv", "distances.csv"),
    *(f"key_figures_{one}{what}.csv" for one in ("dead", "live", "all") for what in ("", "_by_run")),
    *("epochs.csv", "published.csv", "published.md"),
}
FIGURES = {
    "radius",
    "cloud",
    "inhale",
    "sneeze",
    "speed",
    "frozen",
    "lifecycle",
    "displacement",
    "divergence",
    "loss",
}


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def drawn(folder: Path) -> set[str]:
    names = {path.name for path in (folder / "figures").iterdir()}
    stems = {name.rpartition(".")[0] for name in names}
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    return stems


def save_trial(folder: Path) -> Path:
    """Saves two runs of nine tokens, three of them dead."""
    return save_recording(folder / "trial.safetensors", [walk(1), walk(2)], dead=[0, 1, 4])


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    return save_trial(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a trial that no test changes."""
    return report(save_trial(tmp_path_factory.mktemp("report")))


def test_everything_is_written(made: Report) -> None:
    folder = made.page.parent
    assert (folder.name, made.page.name) == ("trial_report", "index.html")
    assert {path.name for path in folder.iterdir()} == {"index.html", "figures", "measured", *TABLES}
    assert drawn(folder) == FIGURES
    # Each run for itself, then all beside each other, and the first once more for its cloud.
    assert made.measured_bytes == (2 * 2 + 1) * 7 * 9 * 4 * 2
    text = made.page.read_text(encoding="utf-8")
    assert all(f'href="{name}"' in text for name in TABLES)
    assert text.count("<svg ") == len(FIGURES)


def test_tables_have_the_numbers_of_the_functions_they_are_made_by(made: Report) -> None:
    folder = made.page.parent
    with flannel_pl.open_recording(folder.parent / "trial.safetensors") as recording:
        dead = recording.masks["dead_indices"] if "dead_indices" in recording.masks else np.array([0, 1, 4])
        pairs = measure_divergence(list(recording), {"dead": np.asarray(dead)})
        W_RSD = np.asarray(recording.run(1).embeddings[:]).astype(np.float64)
    (found,) = [x for x in lines(folder / "distances.csv") if (x["set"], x["step"]) == ("dead", "6")]
    assert float(found["distance_mean"]) == pytest.approx(pairs["dead"].distance_PR[0, 6], rel=1e-6)
    assert float(found["ratio"]) == pytest.approx(pairs["dead"].ratio_R[6], rel=1e-6)
    tokens = lines(folder / "tokens.csv")
    assert len(tokens) == 2 * 9
    assert {line["token"] for line in tokens if line["dead"] == "1"} == {"0", "1", "4"}
    moving = (np.diff(W_RSD, axis=0) != 0).any(axis=2)
    # The last step at which a token moves, 0 if it never does.
    last = [max(np.flatnonzero(moving[:, token]) + 1, default=0) for token in range(9)]
    assert [int(line["late_end"]) for line in tokens if line["run"] == "1"] == last
    radius = np.linalg.norm(W_RSD[-1, [0, 1, 4]], axis=1).mean()
    (line,) = [
        x
        for x in lines(folder / "key_figures_dead_by_run.csv")
        if (x["figure"], x["run"]) == ("origin_radius, end", "seed 43")
    ]
    assert float(line["value"]) == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_without_scripts_shows_it(
    browser: "Browser", made: Report, width: int, scheme: str
) -> None:
    with visit(browser, made.page, width=width, scheme=scheme, scripts=False) as tab:
        check_drawing(tab, num_figures=len(FIGURES))
        links = tab.eval_on_selector_all("main a", "links => links.map(link => link.href)")
    files = {link.removeprefix(made.page.parent.as_uri() + "/") for link in links}
    assert files == TABLES | {f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")}
    assert all((made.page.parent / name).is_file() for name in files)


@pytest.mark.slow
def test_a_report_again_reads_only_what_has_changed(trial: Path) -> None:
    made = report(trial)
    before = {path: path.read_bytes() for path in made.page.parent.rglob("*") if path.is_file()}
    again = report(trial)
    assert again.measured_bytes == 0
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == []
    elsewhere = report(trial, out=trial.parent / "elsewhere")
    assert elsewhere.measured_bytes == 0
    assert not (trial.parent / "elsewhere" / "measured").exists()


def test_a_figure_that_is_no_longer_there_is_taken_away(trial: Path) -> None:
    folder = report(trial).page.parent
    save_recording(trial, [walk(1)], dead=[0, 1, 4])
    assert report(trial).measured_bytes == 2 * 7 * 9 * 4 * 2
    assert drawn(folder) == FIGURES - {"divergence"}
    assert "figure: Distance between runs" in (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "missing", "said"),
    [
        ({"runs": [walk(1)]}, {"divergence"}, "it takes two runs that differ in their seed only"),
        ({"runs": [walk(1)[:1]]}, FIGURES - {"radius"}, "needs two recorded rows"),
        ({"dead": []}, set(), "Not every run has the dead tokens: figures and words are about all tokens."),
        ({"masks": False}, set(), "dead tokens"),
        ({"dtype": "float32"}, set(), ""),
        ({"dtype": "float16"}, {"frozen", "lifecycle", "displacement"}, "which rests at other times"),
        ({"steps": range(0, 70, 10)}, {"inhale"}, "three recorded rows in the first 10 steps"),
        ({"recorded_tokens": [*range(0, 18, 2)], "dead": [0, 4]}, set(), ""),
        ({"losses": [np.nan] * 7}, {"loss"}, "the loss of a step"),
        ({"runs": [np.zeros((7, 9, 4), np.float32)] * 2}, {"inhale", "speed"}, ""),
        ({"runs": [walk(1) * 1e-39, walk(2) * 1e-39]}, set(), ""),
        (
            {"runs": [np.full((7, 9, 4), np.nan, np.float32)] * 2},
            FIGURES - {"frozen", "lifecycle", "loss"},
            "",
        ),
    ],
    ids=[
        *("one run", "one row", "no dead", "no masks", "float32", "float16", "every 10", "some tokens"),
        *("no loss", "at zero", "subnormal", "NaN"),
    ],
)
def test_what_cannot_be_shown_is_left_out_with_its_reason(
    tmp_path: Path, changes: dict[str, object], missing: set[str], said: str
) -> None:
    import torch

    options = {"runs": [walk(1), walk(2)], "dead": [0, 1, 4], **changes}
    if "dtype" in options:
        options["dtype"] = getattr(torch, str(options["dtype"]))
    made = report(save_recording(tmp_path / "r.safetensors", **options))  # type: ignore[arg-type]
    text = made.page.read_text(encoding="utf-8")
    assert said in text
    shown = drawn(made.page.parent)
    assert FIGURES - shown - ({"divergence"} if "divergence" not in missing else set()) <= missing
    assert missing & shown == set()


def test_a_figure_is_missing_for_the_reason_that_its_metric_is(tmp_path: Path) -> None:
    import torch

    path = save_recording(tmp_path / "r.safetensors", [walk(1), walk(2)], dtype=torch.float16)
    text = report(path).page.read_text(encoding="utf-8")
    for heading in ("Frozen tokens", "Phases of life", "Jumps on the lattice"):
        why = text.partition(f"figure: {heading}")[2][:300]
        assert "recorded as float16, which rests at other times" in why, heading


@pytest.mark.usefixtures("one_picture")
def test_a_report_says_what_is_rounded(tmp_path: Path) -> None:
    config = {"model": {"param_dtype": "float32"}, "trainer": {"precision": "32-true"}}
    make_experiment(tmp_path / "old", num_runs=2, gather="index", config=config)
    text = report(tmp_path / "old").page.read_text(encoding="utf-8")
    assert "rounded: embeddings from float32 to bfloat16" in text
    assert "logits from float32 to bfloat16" in text


def test_without_embeddings_there_is_the_loss(tmp_path: Path) -> None:
    folder = tmp_path / "losses"
    make_experiment(folder, num_runs=2, gather="index", tensors=["losses"])
    made = report(folder)
    text = made.page.read_text(encoding="utf-8")
    assert "the embeddings are not recorded; --recorder.tensors [embeddings, losses] would" in text
    assert drawn(folder / "report") <= {"loss"}  # of random bits: perhaps no finite one
    rows = lines(folder / "report" / "metrics.csv")
    assert {row["set"] for row in rows} == {"all"}
    assert made.measured_bytes == 0


@pytest.mark.slow
def test_several_experiments_are_laid_over_one_another(tmp_path: Path) -> None:
    paths = [
        save_recording(tmp_path / f"{name}.safetensors", [walk(seed), walk(seed + 1)], dead=[0, 1, 4])
        for seed, name in ((1, "bf16"), (5, "fp32"), (9, "mixed"))
    ]
    made = report(*paths, out=tmp_path / "all")
    text = made.page.read_text(encoding="utf-8")
    assert "<h1>bf16 and fp32 and mixed</h1>" in text
    assert {line["group"] for line in lines(tmp_path / "all" / "steps_dead.csv")} == {"bf16", "fp32", "mixed"}
    assert {line["group"] for line in lines(tmp_path / "all" / "published.csv")} == {"bf16", "fp32", "mixed"}
    assert (tmp_path / "all" / "metrics_3.csv").exists()
    assert drawn(tmp_path / "all") == FIGURES
    assert report(paths[1]).measured_bytes == 0  # what was measured lies with the recording


@pytest.mark.usefixtures("one_picture")
def test_a_sweep_has_a_group_for_each_value(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    make_experiment(
        folder, num_runs=4, gather="index", swept=lambda run: {"model.init_scale": (0.02, 0.03)[run // 2]}
    )
    made = report(folder)
    assert made.page == folder / "report" / "index.html"
    groups = {line["group"] for line in lines(folder / "report" / "key_figures_dead.csv")}
    assert groups == {"sweep, model.init_scale 0.02", "sweep, model.init_scale 0.03"}
    text = made.page.read_text(encoding="utf-8")
    assert "model.init_scale is 0.03, published 0.02" in text
    assert '<th scope="row">swept: model.init_scale</th><td>0.02, 0.03</td>' in text
    assert "init_scale 0.02, " not in text


@pytest.mark.slow
def test_a_run_that_is_not_finite_is_named_and_not_in_the_mean(tmp_path: Path) -> None:
    broken = walk(3)
    broken[4:, 2] = np.nan
    made = report(save_recording(tmp_path / "r.safetensors", [walk(1), walk(2), broken], dead=[0, 1, 4]))
    text = made.page.read_text(encoding="utf-8")
    assert "r, seed 44: weights are not finite from step 4 on. From there means" in text
    made = report(save_recording(tmp_path / "s.safetensors", [walk(1), walk(2), broken], dead=[2, 3]))
    healthy = report(save_recording(tmp_path / "t.safetensors", [walk(1), walk(2)], dead=[2, 3]))
    found, expected = (
        [
            x
            for x in lines(one.page.parent / "epochs.csv")
            if x["set"] == "dead" and x["run"].startswith("mean")
        ]
        for one in (made, healthy)
    )
    assert [(x["step"], x["value"]) for x in found] == [(x["step"], x["value"]) for x in expected]


@pytest.mark.usefixtures("one_picture")
def test_runs_of_different_length_end_where_the_shortest_does(tmp_path: Path) -> None:
    made = report(save_recording(tmp_path / "r.safetensors", [walk(1), walk(2)[:5]], dead=[0, 1, 4]))
    assert "ends where the shortest does, at step 4." in made.page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("one_picture")
def test_names_are_no_formulas(tmp_path: Path) -> None:
    paths = [
        save_recording(tmp_path / name, [walk(1), walk(2)], dead=[0, 1, 4])
        for name in (r"a $\foo{$ b.safetensors", "_under.safetensors", "<script>.safetensors")
    ]
    made = report(*paths, out=tmp_path / "all")
    text = made.page.read_text(encoding="utf-8")
    assert "<script>.safetensors" not in text
    assert "<script> " not in text
    assert r"<h1>a $\foo{$ b and _under and &lt;script&gt;</h1>" in text


@pytest.mark.usefixtures("one_picture")
def test_experiments_of_one_name_are_told_apart_by_their_place(tmp_path: Path) -> None:
    paths = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        paths.append(save_recording(tmp_path / place / "same.safetensors", [walk(1)], dead=[0]))
    made = report(*paths, out=tmp_path / "all")
    groups = [line["group"] for line in lines(tmp_path / "all" / "steps_dead.csv")]
    assert set(groups) == {"same (here/same.safetensors)", "same (there/same.safetensors)"}
    assert "Recordings side by side" in made.page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("one_picture")
def test_tables_of_an_earlier_report_are_taken_away_and_nothing_else(tmp_path: Path) -> None:
    paths = [save_recording(tmp_path / f"{seed}.safetensors", [walk(seed)], dead=[0]) for seed in (1, 2)]
    out = tmp_path / "out"
    report(*paths, out=out)
    (out / "mine.csv").write_text("mine")
    report(paths[0], out=out)
    names = {path.name for path in out.glob("*.csv")}
    assert names == {name for name in TABLES if name.endswith(".csv")} | {"mine.csv"}


@pytest.mark.usefixtures("one_picture")
def test_runs_that_are_not_there_yet_are_named(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "begun")
    paths.run(1).recording.rename(paths.run(1).partial)
    text = report(tmp_path / "begun").page.read_text(encoding="utf-8")
    assert "1 run of the experiment is not in this recording (1)" in text


@pytest.mark.usefixtures("one_picture")
def test_measures_of_a_recording_on_a_read_only_disk_lie_with_the_report(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path / "disk" / "trial").folder
    with read_only(tmp_path / "disk"):
        report(folder, out=tmp_path / "out")
        with pytest.raises(UserError, match=r"cannot write the report to .*read-only disk; choose .* --out"):
            report(folder)
    assert (tmp_path / "out" / "measured" / "0" / "run_0.npz").exists()
    assert not (folder / "report").exists()


def test_homes() -> None:
    assert home_of(Path("a/x.safetensors.index.json")) == Path("a/x_report")
    assert home_of(Path("a/x.safetensors")) == Path("a/x_report")


@pytest.mark.usefixtures("one_picture")
def test_wrong_use_is_refused(trial: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one of dead, live, all"):
        report(trial, token_set="dea")
    with pytest.raises(UserError, match="nothing to report: expected at least one recording"):
        report()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; expected a folder"):
        report(trial, out=tmp_path / "file")
    with pytest.raises(UserError, match=r"a recording is given twice: .*expected different ones"):
        report(trial, trial)
    paths = make_experiment(tmp_path / "experiment", num_runs=1)
    for folder in (paths.folder, paths.run(0).folder):
        with pytest.raises(UserError, match="expected a folder of the report's own"):
            report(trial, out=folder)
    with pytest.raises(UserError, match="There is no"):
        report(tmp_path / "nowhere")
