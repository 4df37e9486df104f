"""What of a report can be played with: its charts, the steps they play through, the tokens' words."""

from collections.abc import Mapping, Sequence

from flannel_pl.analysis.drawing.charts import Chart
from flannel_pl.analysis.drawing.panels import Band
from flannel_pl.analysis.measuring.cloud import frame_rows
from flannel_pl.analysis.reporting.chart_data import chart_data
from flannel_pl.analysis.reporting.library import Interactive, interactive
from flannel_pl.analysis.reporting.reported import Reported
from flannel_pl.analysis.words import counted


def interaction_of(
    experiments: Sequence[Reported], charts: Mapping[str, Chart], bands: Sequence[Band]
) -> Interactive | None:
    """Returns what makes a report's page interactive.

    Args:
        experiments: Of the report.
        charts: Name of a figure -> its chart.
        bands: Epochs.

    Returns:
        None without charts, or where Plotly is not installed.
    """
    if not charts:
        return None
    steps = played_steps(experiments)
    said = what_is_played(experiments, steps, bands)
    texts = [one.texts for one in experiments]
    return interactive(chart_data(charts, steps=steps, epochs=bands, texts=texts, said=said))


def what_is_played(experiments: Sequence[Reported], steps: Sequence[int], bands: Sequence[Band]) -> str:
    """Returns what the player says of its steps: those of a slider are expected to be evenly spread."""
    recorded = max(len(run.steps_R) for one in experiments for run in one.measures.runs)
    words = f"The bar at the bottom goes through {counted(len(steps), 'recorded step')}"
    if len(steps) < recorded:
        words += f" of {recorded:,}, closer together at the beginning, where most happens"
        words += f": its middle is step {steps[len(steps) // 2]:,} of {steps[-1]:,}"
    return f"{words}.{' The epoch beside the step is by rule A.' if bands else ''}"


def played_steps(experiments: Sequence[Reported]) -> list[int]:
    """Returns the steps of the player: the frames of the longest cloud, or of the longest run."""
    clouds = [cloud.steps_F for one in experiments for cloud in one.measures.clouds]
    if clouds:
        return [int(step) for step in max(clouds, key=lambda steps_F: int(steps_F[-1]))]
    steps_R = max((run.steps_R for one in experiments for run in one.measures.runs), key=len)
    return [int(step) for step in steps_R[frame_rows(len(steps_R))]]
