"""Type and shape of what a recording holds, in the codes that safetensors has for types."""

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Code of each dtype -> numpy's; larger ones first, as safetensors lays them out."""


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of one tensor."""

    dtype: str
    """Code of the dtype, a key of `NUMPY_DTYPES`, e.g. BF16."""

    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize

    @classmethod
    def of(cls, array: "np.ndarray[Any, Any]") -> "TensorSpec":
        """Returns the spec of a numpy array."""
        code = next(code for code, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)
        return cls(code, tuple(array.shape))
