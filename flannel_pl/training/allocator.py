"""Lets the C library keep the memory that a step frees for the next step, on Linux with glibc.

By default it hands every large block back to the kernel and asks for it anew, page by page: at the
notebook's sizes that took longer than the arithmetic. No number depends on where it lies, so no bit changes.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h

TRIM_BYTES = 2**31 - 1
"""Free memory at the end of the heap beyond which it is given back; the largest number there is."""

PAD_BYTES = 64 * 2**20
"""By how much more than needed the heap grows."""


def keep_memory() -> bool:
    """Makes this process keep what it frees; best called before it has allocated much.

    Returns:
        Whether that was possible.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, TRIM_BYTES), (_M_TOP_PAD, PAD_BYTES))
    return all(mallopt(option, value) == 1 for option, value in settings)
