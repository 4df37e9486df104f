"""What annotations call an array of numpy, of any shape and type."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
