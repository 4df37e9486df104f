"""Live metrics on their way to the Trainer's loggers."""

from lightning.pytorch import Trainer

from flannel_pl.quantities.core.recorder import RunRecorder


def log_live(core: RunRecorder, trainer: Trainer, *, all_rows: bool = False) -> None:
    """Logs what was measured and is not logged yet, each row with its step.

    Args:
        core: Records the run.
        trainer: Has the loggers.
        all_rows: Whether that is all there will be, and it is waited for and saved.

    Raises:
        RunError: If writing has failed.
    """
    for row in core.live.take(core.writer, all_rows=all_rows):
        for logger in trainer.loggers if row.values else ():
            logger.log_metrics(dict(row.values), step=row.step)
    for logger in trainer.loggers if all_rows and core.config.live else ():
        logger.save()
