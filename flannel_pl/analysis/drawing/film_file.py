"""Pictures into one file that moves: GIF or animated PNG, with one palette for all of them.

Shape suffixes: H and W pixels, C colours.
"""

import io
from collections.abc import Iterable, Sequence

from PIL import Image

from flannel_pl.arrays import Array

FORMATS = {".gif": "GIF", ".png": "PNG"}
"""Suffix of a film -> its format."""

LEAVE_THERE = {"GIF": 1, "PNG": 0}
"""How each says that the next picture is drawn over the one before it."""


def film_bytes(
    frames: Iterable[Array], milliseconds: Sequence[int], suffix: str, *, palette_C3: Array
) -> bytes:
    """Returns a file that shows pictures one after the other, for ever.

    Args:
        frames: (H, W, 3) uint8 each; in memory they are a byte a pixel.
        milliseconds: For how long each is shown.
        suffix: Of `FORMATS`.
        palette_C3: At most 255 colours, uint8; each pixel becomes one that is near to its own.

    Example:
        >>> import numpy as np
        >>> two_C3 = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
        >>> black, white = (np.tile(color_3, (2, 3, 1)) for color_3 in two_C3)
        >>> file = film_bytes([black, white], [20, 500], ".gif", palette_C3=two_C3)
        >>> Image.open(io.BytesIO(file)).n_frames
        2
    """
    palette = Image.new("P", (1, 1))
    palette.putpalette(palette_C3.tobytes())
    first, *others = [
        Image.fromarray(frame_HW3).quantize(palette=palette, dither=Image.Dither.NONE) for frame_HW3 in frames
    ]
    content, kind = io.BytesIO(), FORMATS[suffix]
    first.save(
        content,
        format=kind,
        save_all=True,
        append_images=others,
        duration=list(milliseconds),
        loop=0,
        optimize=False,
        disposal=LEAVE_THERE[kind],
    )
    return content.getvalue()
