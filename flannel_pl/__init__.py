"""Record everything at every step: how training moves a model's embeddings, for many seeds at once.

The public names are imported when they are first used, so `import flannel_pl` is quick and imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Experiment": "flannel_pl.api.experiment",
    "FlannelData": "flannel_pl.models.flannel_data",
    "Recorder": "flannel_pl.adapters.loop",
    "StepRecorder": "flannel_pl.adapters.lightning.recorder",
    "TiedGPT2": "flannel_pl.models.tied_gpt2",
    "RunError": "flannel_pl.errors",
    "UserError": "flannel_pl.errors",
    "compare": "flannel_pl.analysis.comparing.compare",
    "fit": "flannel_pl.api.commands",
    "gather": "flannel_pl.recording.gathering.gather",
    "open_recording": "flannel_pl.recording.reader",
    "plan": "flannel_pl.api.commands",
    "prepare": "flannel_pl.corpus.prepare",
    "report": "flannel_pl.analysis.reporting.report",
    "status": "flannel_pl.api.experiment",
    "verify": "flannel_pl.recording.checking.verify",
}

__all__ = [
    "Experiment",
    "FlannelData",
    "Recorder",
    "RunError",
    "StepRecorder",
    "TiedGPT2",
    "UserError",
    "__version__",
    "compare",
    "fit",
    "gather",
    "hf",
    "open_recording",
    "plan",
    "prepare",
    "report",
    "status",
    "verify",
]

if TYPE_CHECKING:
    from flannel_pl.adapters import hf
    from flannel_pl.adapters.lightning.recorder import StepRecorder
    from flannel_pl.adapters.loop import Recorder
    from flannel_pl.analysis.comparing.compare import compare
    from flannel_pl.analysis.reporting.report import report
    from flannel_pl.api.commands import fit, plan
    from flannel_pl.api.experiment import Experiment, status
    from flannel_pl.corpus.prepare import prepare
    from flannel_pl.errors import RunError, UserError
    from flannel_pl.models.flannel_data import FlannelData
    from flannel_pl.models.tied_gpt2 import TiedGPT2
    from flannel_pl.recording.checking.verify import verify
    from flannel_pl.recording.gathering.gather import gather
    from flannel_pl.recording.reader import open_recording


def __getattr__(name: str) -> Any:
    if name == "hf":
        return importlib.import_module("flannel_pl.adapters.hf")
    if name not in _HOMES:
        raise AttributeError(f"flannel_pl has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
