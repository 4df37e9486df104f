"""Whether the runs of an experiment can be gathered, by what each will say of itself."""

from collections.abc import Mapping
from typing import Any

from safetensors.numpy import load

from flannel_pl import provenance
from flannel_pl.experiment import ResolvedExperiment, Run, Slot
from flannel_pl.quantities.core.environment import expected_environment
from flannel_pl.quantities.core.label import RunLabel
from flannel_pl.recording.formats.attempts import with_attempt
from flannel_pl.recording.formats.columns import run_prefix
from flannel_pl.recording.formats.metadata import parse_json
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.gathering import limits as gather_limits
from flannel_pl.texts import for_file
from flannel_pl.training.checked import CheckedRun


def label_of(
    experiment: ResolvedExperiment, run: Run, slot: Slot, *, attempt: int, data_digests: dict[str, str]
) -> RunLabel:
    """Returns what a run's recorder is to say of it.

    Args:
        experiment: What the run belongs to.
        run: Which run.
        slot: Where it is trained.
        attempt: How often it has been started, this time included.
        data_digests: Name of each data file -> the hash of its content.
    """
    config = experiment.run_config(run)
    # An index refers to the shards themselves, so there every key has to be unique over all runs.
    prefix = run_prefix(run.index) if config.experiment.gather == "index" else ""
    metadata = for_file(
        {
            "experiment": experiment.paths.folder.name,
            "config": config.content,
            "provenance": {"data": data_digests},
        }
    )
    mixing = config.launch.mix_environments
    swept = for_file(run.swept)
    return RunLabel(run.index, run.seed, swept, prefix, attempt, slot.name, metadata, mixing)


def check_gatherable(experiment: ResolvedExperiment, checked: Mapping[int, CheckedRun], slot: Slot) -> None:
    """Refuses an experiment of more runs than can be gathered as it asks for.

    Args:
        experiment: What is going to be trained.
        checked: Number of each run -> what is known of it.
        slot: Where one of them is trained.

    Raises:
        UserError: Says what else there is to do.
    """
    first, digests, masks = experiment.runs[0], checked[0].digests, checked[0].masks
    host = Slot("cpu", None, slot.threads)  # asking a GPU its name would wake it
    label = label_of(experiment, first, host, attempt=1, data_digests=digests)
    label.metadata["attempts"] = with_attempt({}, 0, expected_environment(slot.accelerator))
    origin = {**provenance.collect(), "data": digests}
    settled = {"accelerator": slot.accelerator, "threads_per_run": 1}
    gather_limits.check_header_fits(
        experiment.record(origin, settled=settled),
        masks={} if masks is None else load(masks),
        specs=[_specs(checked[run.index]) for run in experiment.runs],
        metadata=[_planned_metadata(run, checked[run.index], label) for run in experiment.runs],
    )


def _specs(checked: CheckedRun) -> dict[str, TensorSpec]:
    return checked.schema.specs({name: TensorSpec.of(array) for name, array in checked.static.items()})


def _planned_metadata(run: Run, checked: CheckedRun, label: RunLabel) -> dict[str, Any]:
    """Returns what a run's shard is going to say of itself, but for the config, which is shared."""
    known = {"run": run.index, "seed": run.seed, "swept": run.swept, **label.metadata, "config": {}}
    return parse_json(checked.schema.metadata(known, static=checked.static))
