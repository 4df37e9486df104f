"""Records one run, whatever trains it: from the first row to the finished file.

Adapters call it at the moments of a step; `rows.py` fills the rows, the writer brings them to the disk.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from torch import nn

from flannel_pl.errors import UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.quantities.core.columns import declared_columns
from flannel_pl.quantities.core.config import RecorderConfig
from flannel_pl.quantities.core.hold import hold_folder, refuse_experiments_folder
from flannel_pl.quantities.core.label import RunLabel
from flannel_pl.quantities.core.listening import Listener
from flannel_pl.quantities.core.optimizers import several_gradients
from flannel_pl.quantities.core.optimizing import OptimizerWatch
from flannel_pl.quantities.core.passes import Passes
from flannel_pl.quantities.core.remembering import go_on_with, remembered
from flannel_pl.quantities.core.rows import StepEnd
from flannel_pl.quantities.core.run_file import Note
from flannel_pl.quantities.core.start import Start, Started
from flannel_pl.quantities.core.tokens import TokenIds, token_tensors
from flannel_pl.quantities.core.training import Training
from flannel_pl.quantities.core.watching import LiveFeed
from flannel_pl.quantities.core.words import in_words_of_scripts
from flannel_pl.quantities.naming import find_named
from flannel_pl.quantities.step import Step
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.reader import Recording, open_recording, open_unfinished
from flannel_pl.recording.writing.lock import Lock
from flannel_pl.recording.writing.writer import RecordingWriter


class RunRecorder:
    """Records one run.

    Args:
        folder: Where `recording.safetensors` and the run's journal are written.
        config: What is recorded.
        label: Which run this is; for the file's metadata and the journal.
        note: Told when training starts: of the first row that is made, and in which environment.
        in_experiment: Whether the folder is part of an experiment, whose keys messages name, and which locks
            the folder and knows what is unfinished there. Else this does.
        overwrite: Whether an earlier recording in the folder may go.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: RecorderConfig,
        *,
        label: RunLabel | None = None,
        note: Note | None = None,
        in_experiment: bool = False,
        overwrite: bool = False,
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise UserError(f"the folder to record into is of type {type(folder).__name__}, expected a path")
        if not isinstance(overwrite, bool):
            raise UserError(f"overwrite is {overwrite!r}, expected True or False")
        # A script may go to another folder while it trains.
        self.paths = RunPaths(Path(folder) if in_experiment else Path(folder).absolute())
        if not in_experiment:
            refuse_experiments_folder(self.paths.folder)
        self.config, self.label = config, label or RunLabel()
        self._note = note or (lambda event, **fields: None)
        self.in_experiment, self._overwrite = in_experiment, overwrite
        self._training: Training | None = None
        self._started: Started | None = None
        self.listener: Listener | None = None
        self._lock: Lock | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets an earlier training, which an exception may have ended anywhere."""
        self._started, self.passes, self._training = None, Passes(), None
        self.live = LiveFeed(self.config.live, self.label.run, self._note)
        self.step = self._gradient_step = 0
        """The last step that is over."""

    @property
    def writer(self) -> RecordingWriter | None:
        """What writes the file; None where nothing is recorded, or as long as not all sizes are known."""
        return None if self._started is None else self._started.rows.writer

    @property
    def watch(self) -> OptimizerWatch | None:
        """What follows the optimizers; None where nothing is recorded."""
        return None if self._started is None else self._started.watch

    @property
    def is_recording(self) -> bool:
        """Whether it has been started, and neither finished nor aborted."""
        return self._started is not None

    def listen(
        self, module: nn.Module, token_sets: Mapping[str, TokenIds], *, in_training_mode: bool = False
    ) -> None:
        """Begins to listen to forward passes, before there is any: what is compiled in one stays so.

        Args:
            module: What is going to be trained.
            token_sets: Name -> token ids.
            in_training_mode: See `Listener`.

        Raises:
            UserError: If a quantity wants to hear what is not there.
        """
        if not self.config.quantities:
            return
        with in_words_of_scripts(in_experiment=self.in_experiment):
            name, parameter = find_named(module, self.config.leading(module))
            sets = token_tensors(token_sets, parameter.device)
            bare = self.config.parameter is not None
            subject = Subject(parameter, name, module=module, token_sets=sets, has_bare_names=bare)
            declared_columns(self.config.quantities, subject)
            self.listener = Listener(
                module,
                self.config.quantities,
                values=self.passes,
                step=self._step_under_way,
                every_n_steps=self.config.every_n_steps,
                in_training_mode=in_training_mode,
            )

    def _step_under_way(self, **seen: Any) -> Step | None:
        """Returns the step under way, as a forward pass sees it; None before there is a recording."""
        if self._started is None:
            return None
        watch = self._started.watch
        return Step(self.step + 1, self._started.rows.subject, watch, rate=watch.rate, **seen)

    def start(self, training: Training) -> None:
        """Opens the recording and writes row 0, the state before any step; or goes on with one.

        Args:
            training: What trains.

        Raises:
            UserError: If it cannot be recorded, or the folder has something else.
            RunError: If the disk refuses.
        """
        self._training, self.step = training, training.step
        with in_words_of_scripts(in_experiment=self.in_experiment):
            start = Start(self.paths, self.config, self.label, training)
            if not self.in_experiment and self._lock is None:
                if self._overwrite and start.first_row == 0:
                    start.planned()  # refuses what it has to before anything goes
                self._lock = hold_folder(
                    self.paths,
                    first_row=start.first_row,
                    step=training.step,
                    every_n_steps=self.config.every_n_steps,
                    go_on=training.go_on,
                    overwrite=self._overwrite,
                )
                start.refuse_other_weights()
            self._started = start.start(self.passes, self._note, self.live)
        if training.step == 0:
            self._started.rows.take_first()
            self._started.watched.take()

    def hearing(self) -> AbstractContextManager[None]:
        """Hears what runs in the block, a forward pass of training, if anybody listens."""
        return nullcontext() if self.listener is None else self.listener.hearing()

    def heard(self, batch: Any, returned: Any) -> None:
        """Lets quantities look at a forward pass of training that is over.

        Args:
            batch: What it was given.
            returned: What it returned.
        """
        if self.listener is not None:
            self.listener.passed(batch, returned)

    def end_batch(self, outputs: Any) -> None:
        """Adds a batch, whose loss is known, to its step.

        Args:
            outputs: A dict with `loss` and perhaps `logits` (V); None for a batch that does not count.

        Raises:
            UserError: If it is not what can be recorded.
            RunError: If writing has failed.
        """
        with in_words_of_scripts(in_experiment=self.in_experiment):
            if self.writer is not None:
                self.writer.raise_if_failed()
            assert self._started is not None
            self.passes.end(counts=self._started.returned.add(outputs))

    def forget_batches(self) -> None:
        """Forgets batches whose gradients are thrown away."""
        if self._started is not None:
            self._started.returned.clear()
        self.passes.clear()

    def before_step(self, number: int, *, of: str) -> None:
        """Copies what the step uses up: the gradient before clipping, its norm, the learning rate.

        Args:
            number: Of the step.
            of: Name of what steps, for messages.

        Raises:
            UserError: If the weights are not those of the row before, or there is no room for this step.
        """
        assert self._started is not None
        assert self._training is not None
        watched, watch = self._started.watched, self._started.watch
        watched.refuse_replaced()
        watched.refuse_changed(step=number, who=self._training.who_changes)
        self._refuse_beyond(number)
        watch.refuse_moved()
        if number == self._gradient_step:
            raise UserError(several_gradients(of))
        self._gradient_step = number
        self._started.rows.before_step(number, watch, rate=watch.rate)

    def _refuse_beyond(self, number: int) -> None:
        """Refuses a step that the file has no place for."""
        assert self._training is not None
        room, why = self._training.num_steps, "as many were announced"
        if room is None and self.writer is not None:
            room = self.writer.schema.num_rows * self.config.every_n_steps - 1
            why = "it was begun so"
        if room is not None and number > room:
            raise UserError(
                f"{self.paths.partial} has places for {room} steps, because {why}, and this is step "
                f"{number}; announce more (steps=...)"
            )

    def after_step(self, number: int, *, divided_by: int | None) -> None:
        """Takes what there is after a step, and writes its row.

        Args:
            number: Of the step.
            divided_by: By how many the loss of each of its batches is divided already; None if so that their
                sum is the mean.

        Raises:
            UserError: If a quantity does not do what it declares.
            RunError: If writing has failed.
        """
        assert self._started is not None
        returned, watch = self._started.returned, self._started.watch
        watch.refuse_stranger()
        if number % self.config.every_n_steps == 0:
            self._started.watched.refuse_replaced()
            self._started.watched.take()
        skipped = True if returned.is_empty else watch.skipped
        end = StepEnd(
            returned.loss(divided_by), returned.logits_V, skipped, watch.rate_of_step, returned.is_empty
        )
        with in_words_of_scripts(in_experiment=self.in_experiment):
            self._started.rows.after_step(number, watch, end, rate=watch.rate_of_batch)
        self.step = number
        watch.end_step()
        returned.clear()

    def flush(self) -> None:
        """Waits until the rows so far are safe on the disk.

        Raises:
            RunError: If writing has failed.
        """
        if self.writer is not None:
            self.writer.flush()

    def open(self) -> Recording:
        """Opens what is recorded so far for reading.

        Raises:
            UserError: If there is nothing yet.
            RunError: If writing has failed.
        """
        if self.writer is not None:
            return open_unfinished(self.paths.partial, num_rows=self.writer.flush())
        if self.is_recording and not self.paths.recording.exists():
            raise UserError("nothing is recorded yet: the first step tells how large a row is")
        return open_recording(self.paths.folder)

    def finish(self, early_end: EarlyEnd | None) -> None:
        """Gives the recording its name: with all planned rows, or with those there are if it ended early.

        Args:
            early_end: Why there are fewer, if there are.

        Raises:
            UserError: If no step has told what the rows are like.
            RunError: If the disk fails, or rows are missing.
        """
        assert self._started is not None
        rows = self._started.rows
        is_last = self._training is not None and self.step == self._training.num_steps
        if is_last and rows.writer is not None and self.step < rows.writer.schema.last_step:
            early_end = EarlyEnd(self.step, None, "it was begun with places for more steps")
        with in_words_of_scripts(in_experiment=self.in_experiment):
            rows.refuse_unknown()
            assert rows.writer is not None
            rows.writer.finish(early_end)
        rows.writer = None
        if early_end is not None:
            self._note("ended_early", run=self.label.run, **early_end.said)

    def abort(self, message: str, *, state: Literal["failed", "stopped"] = "failed") -> None:
        """Brings the rows recorded so far to the disk, unfinished, and lets go of everything.

        Does nothing more than the latter after `finish`.
        """
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        if self._started is not None:
            self._started.watch.close()
        if self.writer is not None:
            # Without a step there is nothing in it that would not be there again: no reason to refuse the
            # next start.
            is_worth_keeping = self.in_experiment or self.step > 0
            self.writer.abort(message, state=state, keep_file=is_worth_keeping)
        self._started = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def state_dict(self) -> dict[str, Any]:
        """Returns what quantities remember, if any does, and of which step; and which row is logged next."""
        return {**remembered(self.config.quantities, self.step), **self.live.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], *, step: int) -> None:
        """Lets quantities go on with what they remember.

        Args:
            state: What `state_dict` returned.
            step: After which training goes on.

        Raises:
            UserError: If it is of other quantities, or of another step.
        """
        go_on_with(self.config.quantities, state, step=step)
        self.live.load_state_dict(state)
