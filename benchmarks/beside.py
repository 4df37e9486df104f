"""A step of this checkout beside one of another: python -m benchmarks.beside OTHER."""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.figures import ratios
from benchmarks.sizes import SIZES
from benchmarks.steps import beside


def main() -> None:
    """Prints the ratio of each pair of turns, and their median."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout, e.g. of an earlier commit")
    parser.add_argument("--loop", default="lightning-recording", help="of benchmarks/loops.py")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="notebook")
    parser.add_argument("--num_blocks", type=int, default=15)
    parser.add_argument("--block_steps", type=int, default=8)
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        options.folder = Path(folder)
        blocks_ms = beside(options.loop, [here, options.other.resolve()], options)
    found = ratios(*blocks_ms.values())
    print(", ".join(f"{one:.3f}" for one in sorted(found)))
    print(f"a step here / there: {statistics.median(found):.3f}, median of {len(found)} pairs of turns")


if __name__ == "__main__":
    main()
