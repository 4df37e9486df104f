"""From what is asked for and what trains to a recording that is open, or could be."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flannel_pl.errors import UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.quantities.core.config import RecorderConfig
from flannel_pl.quantities.core.environment import environment, refuse_other_environment
from flannel_pl.quantities.core.hold import is_row
from flannel_pl.quantities.core.label import RunLabel
from flannel_pl.quantities.core.optimizing import OptimizerWatch
from flannel_pl.quantities.core.passes import Passes
from flannel_pl.quantities.core.plan import Begun, RecordingPlan, plan_recording
from flannel_pl.quantities.core.returned import Returned
from flannel_pl.quantities.core.rows import Rows
from flannel_pl.quantities.core.run_file import Note, RunFile
from flannel_pl.quantities.core.tokens import TokenIds, recorded_token_ids
from flannel_pl.quantities.core.training import Training
from flannel_pl.quantities.core.watched import RecordedParameter, WatchedParameters
from flannel_pl.quantities.core.watching import LiveFeed
from flannel_pl.recording.formats.files import read_header
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.formats.schema import RecordingSchema


@dataclass(frozen=True)
class Started:
    """What a recorder works with while training goes on."""

    watched: WatchedParameters
    watch: OptimizerWatch
    rows: Rows
    returned: Returned


class Start:
    """Finds out what a training is recorded with.

    Args:
        paths: The run's files.
        config: What is asked for.
        label: Which run it is.
        training: What trains.

    Raises:
        UserError: If the parameter cannot be recorded.
    """

    def __init__(self, paths: RunPaths, config: RecorderConfig, label: RunLabel, training: Training) -> None:
        self.paths, self.config, self.label, self.training = paths, config, label, training
        # Its learning rate and device are those of the recording.
        self.first = RecordedParameter(
            training.module, config.leading(training.module), has_tokens=config.needs_rows
        )
        self.first_row = 0 if training.step == 0 else 1 + training.step // config.every_n_steps

    def layout(self) -> tuple[RecordingSchema, TokenIds | None]:
        """Returns what the file of a training that begins would hold: its columns, and the recorded tokens.

        Raises:
            UserError: If it cannot be recorded.
        """
        file = self.planned()
        return file.schema({name: each for name, (_, each) in file.plan.declared.items()}), file.token_ids

    def planned(self) -> RunFile:
        """Returns the file of a training that begins, as it is planned; makes none.

        Raises:
            UserError: If it cannot be recorded.
        """
        watch = self._watch()
        try:
            return self._file(plan_recording(self.config, self.training, watch, self.first, None))
        finally:
            watch.close()

    def refuse_other_weights(self) -> None:
        """Refuses to go on with a recording whose last row has other weights than training goes on with.

        Raises:
            UserError: If it has.
        """
        # Where Lightning averages weights, it may have put averages in their place at the end of a training.
        can_tell = self.first_row > 0 and self.config.parameter is not None and not self.training.has_ended
        weights: Tensor = self.first.tensor.detach().cpu()
        if can_tell and not is_row(weights, self.training.step, self.paths.partial):
            raise UserError(
                f"training goes on after step {self.training.step} with another {self.first.name} than "
                f"{self.paths.partial} has of that step; go on from a checkpoint of the same training"
            )

    def start(self, passes: Passes, note: Note, live: LiveFeed) -> Started:
        """Makes the file, unless the first rows have to tell the size of something first.

        Args:
            passes: What is taken during forward passes.
            note: Told that training starts.
            live: Measures the rows.

        Raises:
            UserError: If it cannot be recorded.
            RunError: If the disk refuses.
        """
        watch = self._watch()
        try:
            rows, returned = self._rows(passes, note, watch, live)
        except BaseException:
            watch.close()
            raise
        return Started(
            WatchedParameters(self.training.module, self.config, self.first), watch, rows, returned
        )

    def _rows(
        self, passes: Passes, note: Note, watch: OptimizerWatch, live: LiveFeed
    ) -> tuple[Rows, Returned]:
        config, training, first_row = self.config, self.training, self.first_row
        goes_on = first_row > 0 and is_there(self.paths.partial)
        begun = Begun.of(read_header(self.paths.partial), self.label.key_prefix) if goes_on else None
        tensor = self.first.tensor
        plan = plan_recording(config, training, watch, self.first, begun)
        num_logits = len(tensor) if "logits" in plan.declared and tensor.ndim == 2 else None
        now = environment(tensor.device, name=self.label.device)
        if first_row > 0 and not (training.has_ended or self.label.mix_environments):
            refuse_other_environment(self.paths, now, first_row)
        file = self._file(plan)
        watcher = live.begin(training, file.token_ids, num_tokens=self._num_tokens, first_row=first_row)
        rows = Rows(
            partial(
                file.open,
                first_row=first_row,
                device=tensor.device,
                pin_memory=self.first.is_on_cuda,
                environment=None if training.has_ended else now,
                note=note,
                watcher=watcher,
            ),
            plan.quantities,
            plan.declared,
            subject=plan.subject,
            every_n_steps=config.every_n_steps,
            token_ids=None if file.token_ids is None else torch.from_numpy(file.token_ids).to(tensor.device),
            rounded=config.dtypes,
            non_blocking=self.first.is_on_cuda,
            passes=passes,
            optional=plan.optional,
        )
        optional = "logits" in plan.optional
        returned = Returned(self.first.name, num_logits, logits_are_optional=optional, giving=training.giving)
        return rows, returned

    @property
    def _num_tokens(self) -> int:
        tensor = self.first.tensor
        return len(tensor) if tensor.ndim else 1

    def _watch(self) -> OptimizerWatch:
        training = self.training
        return OptimizerWatch(
            training.module,
            training.optimizers,
            self.first.tensor,
            scaler=training.scaler,
            may_skip=training.may_skip,
            may_change_rate=training.may_change_rate,
        )

    def _file(self, plan: RecordingPlan) -> RunFile:
        sets = self.training.token_sets
        ids = recorded_token_ids(self.config.tokens, token_sets=sets, num_tokens=self._num_tokens)
        return RunFile(self.paths, self.config, self.label, plan, ids, self.training.num_steps)
