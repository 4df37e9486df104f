"""The file of a run: its rows and columns follow from what is recorded, and from how long training is."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.quantities.core.columns import column_dtype, schema_of
from flannel_pl.quantities.core.config import RecorderConfig
from flannel_pl.quantities.core.label import RunLabel
from flannel_pl.quantities.core.length import reserved_rows
from flannel_pl.quantities.core.plan import RecordingPlan
from flannel_pl.quantities.core.tokens import TokenIds
from flannel_pl.quantities.quantity import Column
from flannel_pl.recording.formats.schema import RECORDABLE, RECORDED_TOKENS, RecordingSchema
from flannel_pl.recording.writing.journal import Journal, JournalEntry
from flannel_pl.recording.writing.tally import Watcher
from flannel_pl.recording.writing.writer import RecordingWriter

Note = Callable[..., object]
"""Called with the name of an event and its fields, see `launch.events`."""


@dataclass(frozen=True)
class RunFile:
    """What is known of a run's file before it is made."""

    paths: RunPaths
    config: RecorderConfig
    label: RunLabel
    plan: RecordingPlan
    token_ids: TokenIds | None
    """The recorded tokens; None = all."""

    num_steps: int | None
    """How many steps there are at most; None if nobody knows."""

    def schema(self, columns: Mapping[str, Column]) -> RecordingSchema:
        """Lays out rows and columns.

        Args:
            columns: All, with their sizes.

        Raises:
            UserError: If what is gone on with has fewer rows than there are going to be.
        """
        plan, config = self.plan, self.config
        # What no config tells beforehand; one that is gone on with says it already.
        told = {*config.dtypes} - {*RECORDABLE} | {"logits"} if plan.begun is None else set()
        own = {name: column_dtype(column) for name, column in columns.items() if name in told}
        lay_out = partial(
            schema_of,
            {name: (plan.declared[name][0], column) for name, column in columns.items()},
            dtypes=config.dtypes,
            num_token_ids=None if self.token_ids is None else len(self.token_ids),
            every_n_steps=config.every_n_steps,
            own_dtypes={**own, **plan.own_dtypes},
            key_prefix=self.label.key_prefix,
            version=plan.version,
        )
        num_steps = self.num_steps
        is_ended = plan.begun is not None and bool(plan.begun.said.get("ended"))
        if plan.begun is not None and not (is_ended and num_steps):  # of that the writer knows what is left
            begun = (plan.begun.said["num_rows"] - 1) * config.every_n_steps
            if num_steps is not None and num_steps // config.every_n_steps * config.every_n_steps > begun:
                raise UserError(
                    f"{self.paths.partial} was begun with places for {begun} steps, and now there are to be "
                    f"{num_steps}; go on with at most as many, or record into another folder"
                )
            num_steps = begun
        elif num_steps is None:
            num_rows = reserved_rows(self.paths.folder, lay_out(max_steps=config.every_n_steps).row_bytes)
            num_steps = (num_rows - 1) * config.every_n_steps
        return lay_out(max_steps=num_steps)

    def open(
        self,
        columns: Mapping[str, Column],
        *,
        first_row: int,
        device: torch.device,
        pin_memory: bool,
        environment: Mapping[str, Any] | None,
        note: Note,
        watcher: Watcher | None,
    ) -> RecordingWriter:
        """Makes the file, or opens the one that is gone on with.

        Args:
            columns: All, with their sizes.
            first_row: First row that is going to be written.
            device: What is trained on.
            pin_memory: Whether rows come from a GPU.
            environment: In what; None if nothing is trained any more.
            note: Told that training starts.
            watcher: Sees the rows.
        """
        label, schema, ids = self.label, self.schema(columns), self.token_ids
        entry = self._first_entry(schema.num_rows, first_row, device)
        writer = RecordingWriter(
            self.paths.recording,
            partial_path=self.paths.partial,
            schema=schema,
            metadata={"run": label.run, "seed": label.seed, "swept": label.swept, **label.metadata},
            static={} if ids is None else {RECORDED_TOKENS: ids},
            journal_entry=entry,
            journal=Journal(self.paths.journal),
            environment=environment,
            pin_memory=pin_memory,
            first_row=first_row,
            reserve=self.num_steps is not None and self.num_steps >= schema.last_step,
            watcher=watcher,
        )
        if first_row < schema.num_rows and environment is not None:
            started = {"run": entry.run, "attempt": entry.attempt, "pid": entry.pid, "first_row": first_row}
            note("training_started", **started, environment=environment)
        return writer

    def _first_entry(self, num_rows: int, first_row: int, device: torch.device) -> JournalEntry:
        label, now_s = self.label, time.time()
        return JournalEntry(
            run=label.run,
            seed=label.seed,
            swept=label.swept,
            state="running",
            attempt=max(label.attempt, 1 + self._num_attempts()),
            device=label.device or str(device),
            host=socket.gethostname(),
            pid=os.getpid(),
            num_rows=num_rows,
            rows_written=first_row,
            rows_committed=first_row,
            loss=None,
            bytes_written=0,
            started_s=now_s,
            updated_s=now_s,
        )

    def _num_attempts(self) -> int:
        """Returns how often the run was started before, as far as its journal knows."""
        try:
            earlier = Journal(self.paths.journal).read()
        except RunError:  # damaged; it is written anew
            return 0
        return 0 if earlier is None else earlier.attempt
