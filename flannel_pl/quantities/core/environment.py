"""In what a run is trained: software, device, and what torch is set to. Another may give other bits."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from flannel_pl import provenance
from flannel_pl.errors import UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.recording.formats.attempts import attempts_of, environment_changes
from flannel_pl.recording.formats.files import read_header

DRIVER_FACTS = Path("/proc/driver/nvidia/version")
"""Where Linux says which driver its NVIDIA GPUs have."""

VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE"),
    *("MKL_DISABLE_FAST_MM", "MKL_DOMAIN_NUM_THREADS", "MKL_NUM_STRIPES", "MKL_NUM_THREADS"),
    # With a limit fewer threads add up than torch says that it has.
    *("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_MAX_ACTIVE_LEVELS", "OMP_DYNAMIC", "OMP_SCHEDULE"),
    *("KMP_ALL_THREADS", "KMP_DEVICE_THREAD_LIMIT", "KMP_DETERMINISTIC_REDUCTION"),
    *("ONEDNN_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("DNNL_MAX_CPU_ISA", "DNNL_CPU_ISA_HINTS", "DNNL_DEFAULT_FPMATH_MODE"),
    *("TORCH_LINEAR_FLATTEN_3D", "TORCH_MKLDNN_MATMUL_MIN_DIM", "TORCH_MKLDNN_MATMUL_MIN_SIZE"),
    *("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "GLIBC_TUNABLES"),
    *("PYTORCH_MPS_FAST_MATH", "PYTORCH_MPS_PREFER_METAL"),
)
"""Environment variables that can change how numbers are added up."""

CUDA_VARIABLES = (
    *("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "NVIDIA_TF32_OVERRIDE"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_BLAS_PREFER_HIPBLASLT"),
    *("TORCH_CUDNN_V8_API_DISABLED", "TORCH_CUDNN_USE_HEURISTIC_MODE_B", "TORCH_ROCM_FA_PREFER_CK"),
)
"""Likewise, and only on such a GPU."""


def host_environment(device_type: str) -> dict[str, Any]:
    """Returns what every run has in common that is trained on this host, without asking a GPU.

    Args:
        device_type: cpu, cuda or mps.

    Returns:
        What `provenance.collect` does, `cpu` (model and what torch uses of it) and `variables`.
    """
    names = (*VARIABLES, *(CUDA_VARIABLES if device_type == "cuda" else ()))
    return {
        **provenance.collect(),
        "cpu": {**provenance.cpu_model(), "capability": torch.backends.cpu.get_cpu_capability()},
        "variables": {name: os.environ[name] for name in names if name in os.environ},
    }


def environment(device: torch.device, *, name: str | None = None) -> dict[str, Any]:
    """Returns all of a run's environment; as it is now, so with a Trainer's settings once there is one.

    Args:
        device: What the run is trained on.
        name: What to call it; None = as torch does in this process.

    Returns:
        What `host_environment` does, and `device`, `device_name` (its model), `threads`, `settings` of torch,
        and `cuda`: libraries, driver and settings; None on other devices.
    """
    host = host_environment(device.type)
    on_cuda, cudnn = device.type == "cuda", cast("Any", torch.backends.cudnn)
    return {
        **host,
        "device": name or str(device),
        "device_name": torch.cuda.get_device_name(device) if on_cuda else host["cpu"]["name"],
        "threads": torch.get_num_threads(),
        "settings": _settings(),
        "cuda": _cuda(cudnn=cudnn.version()) if on_cuda else None,
    }


def expected_environment(device_type: str) -> dict[str, Any]:
    """Returns an environment as a run on such a device is going to have it, as long, and asks no GPU."""
    on_cuda = {"cuda": _cuda(cudnn=10_000)} if device_type == "cuda" else {}
    return {**environment(torch.device("cpu")), **host_environment(device_type), **on_cuda}


def _settings() -> dict[str, Any]:
    backends: Any = torch.backends
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": backends.cudnn.deterministic,
        "cudnn_benchmark": backends.cudnn.benchmark,
        "float32_matmul_precision": _asked(torch.get_float32_matmul_precision),
        "matmul_tf32": _asked(lambda: backends.cuda.matmul.allow_tf32),
        "cudnn_tf32": _asked(lambda: backends.cudnn.allow_tf32),
        "fp32_precision": _asked(lambda: backends.cuda.matmul.fp32_precision),
        "mkldnn": backends.mkldnn.enabled,
        "mkldnn_fp32_precision": _asked(lambda: backends.mkldnn.matmul.fp32_precision),
    }


def _asked(read: Callable[[], Any]) -> Any:
    """Returns a setting; None where torch has none, or refuses to tell one that was set in its newer way."""
    try:
        return read()
    except (RuntimeError, AttributeError):
        return None


def _cuda(*, cudnn: int | None) -> dict[str, Any]:
    """Returns what is known of CUDA. Of cuDNN it is told, since torch wakes every GPU before it tells."""
    backends: Any = torch.backends
    cuda = backends.cuda
    kinds = ("flash", "mem_efficient", "math", "cudnn")
    driver = None
    with contextlib.suppress(OSError):
        found = re.search(r"^NVRM.*?\s(\d+\.[\d.]+)", DRIVER_FACTS.read_text(encoding="utf-8"))
        driver = found and found[1]
    return {
        "runtime": torch.version.cuda or torch.version.hip,
        "cudnn": cudnn,
        "driver": driver,
        "fp16_reduced_precision_reduction": _asked(
            lambda: cuda.matmul.allow_fp16_reduced_precision_reduction
        ),
        "bf16_reduced_precision_reduction": _asked(
            lambda: cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
        "attention": [kind for kind in kinds if _asked(getattr(cuda, f"{kind}_sdp_enabled", lambda: False))],
    }


def refuse_other_environment(paths: RunPaths, now: Mapping[str, Any], first_row: int) -> None:
    """Refuses to go on with a run where something that can change bits is not as it was.

    Args:
        paths: The run's files, its unfinished recording among them.
        now: Its environment, or a part of it: only that is compared.
        first_row: First row that would be made now. There is nothing to refuse if no row is left to make.

    Raises:
        UserError: Names every difference, and the option that goes on regardless.
        RunError: If the unfinished recording cannot be read.
    """
    metadata = read_header(paths.partial).flannel
    attempts = [one for one in attempts_of(metadata) if one.first_row < first_row < metadata["num_rows"]]
    changes = environment_changes(attempts[-1].environment, now) if attempts else []
    if changes:
        raise UserError(
            f"{paths.folder} was begun in another environment, which can change bits: {'; '.join(changes)}. "
            "Go on where it was begun; or with --launch.mix_environments true, and its file says which rows "
            "were made where"
        )
