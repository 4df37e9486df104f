"""What the verb compare prints."""

import math
from collections.abc import Iterator

import numpy as np

from flannel_pl.analysis.comparing.compare import Comparison, RunComparison
from flannel_pl.analysis.comparing.pairing import numbers
from flannel_pl.analysis.comparing.tensor_compare import Element, TensorComparison
from flannel_pl.analysis.words import counted
from flannel_pl.arrays import Array

_WIDTH = 16


def describe_comparison(comparison: Comparison) -> str:
    """Returns what was found, run by run, without the verdict.

    Args:
        comparison: From `compare`.

    Example:
        >>> from flannel_pl.analysis.comparing.compare import compare
        >>> found = compare("runs/flannel1", "runs/flannel3", runs=[(0, 0)])
        >>> print(describe_comparison(found))  # doctest: +ELLIPSIS
        A  runs/flannel1
        B  runs/flannel3
        <BLANKLINE>
        run 0 (seed 42): 21 rows (steps 0 to 20), 100 tokens
          equal            recorded_steps, logits, losses_f32, ...
    """
    lines = [f"{name}  {path}" for name, path in zip("AB", comparison.paths, strict=True)]
    for run in comparison.runs:
        lines += ["", *_run(run)]
    for name, runs in zip("AB", comparison.runs_only, strict=True):
        if runs:
            lines += ["", f"only {name} has {numbers(runs)}"]
    for name, runs in zip("AB", comparison.missing, strict=True):
        if runs:
            lines += ["", f"{name} is not complete: it lacks {numbers(runs)} of its experiment"]
    if comparison.shared:
        lines += ["", f"scalars and masks that differ: {', '.join(comparison.shared)}"]
    if comparison.equal and (same := {line: None for run in comparison.runs for line in run.origins}):
        lines += ["", "what differs, though no bit does", *(f"  {line}" for line in same)]
    return "\n".join(lines)


def summarize_comparison(comparison: Comparison, *, elapsed_s: float) -> str:
    """Returns the verdict, one line.

    Args:
        comparison: From `compare`.
        elapsed_s: How long it took.
    """
    num_runs = len(comparison.runs)
    took = f"{counted(num_runs, 'run')} compared in {elapsed_s:.1f} s"
    if comparison.equal:
        return f"equal to the bit ({took})"
    if comparison.equal_in_common:
        return f"different: not everything is in both, but what both have is equal to the bit ({took})"
    firsts = [(run.first.first.step, run) for run in comparison.runs if run.first and run.first.first]
    if not firsts:  # a tensor that cannot be compared, or the experiment's scalars and masks
        names = (tensor.name for run in comparison.runs for tensor in run.tensors if not tensor.equal)
        return f"different: in {', '.join(dict.fromkeys((*names, *comparison.shared)))} ({took})"
    step, run = min(firsts, key=lambda pair: pair[0])
    assert run.first is not None
    place = f"step {step}, in {run.first.name}" + (f" of {_title(run)}" if num_runs > 1 else "")
    num_differing = sum(not run.equal_in_common for run in comparison.runs)
    several = f"{num_differing} of them different, " if num_runs > 1 else ""
    return f"different: {several}first at {place} ({took})"


def _title(run: RunComparison) -> str:
    a, b = run.runs
    return f"run {a}" if a == b else f"run {a} of A and run {b} of B"


def _run(run: RunComparison) -> Iterator[str]:
    seeds = ["unknown" if seed is None else str(seed) for seed in run.seeds]
    seed = f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seeds {seeds[0]} and {seeds[1]}"
    tokens = f", {counted(run.num_tokens, 'token')}" if run.num_tokens else ""
    yield f"{_title(run)} ({seed}): {_rows(run.steps_R)}{tokens}"
    yield from _only(run)
    equal = [tensor.name for tensor in run.tensors if tensor.equal]
    if equal:
        yield f"  {'equal':<{_WIDTH}} {', '.join(equal)}"
    for tensor in run.tensors:
        if not tensor.equal:
            yield from _tensor(tensor)
    if not run.equal_in_common and run.origins:
        yield "  what else differs"
        yield from (f"    {line}" for line in run.origins)


def _rows(steps_R: Array) -> str:
    first, last = steps_R[0], steps_R[-1]
    steps = f"step {first}" if len(steps_R) == 1 else f"steps {first} to {last}"
    return f"{counted(len(steps_R), 'row')} ({steps})"


def _only(run: RunComparison) -> Iterator[str]:
    for number, name in enumerate("AB"):
        found = []
        if run.names_only[number]:
            found.append(", ".join(run.names_only[number]))
        if len(run.steps_only[number]):
            found.append(_rows(run.steps_only[number]))
        if run.tokens_only[number]:
            found.append(counted(run.tokens_only[number], "token"))
        if found:
            yield f"  {f'only in {name}':<{_WIDTH}} {'; '.join(found)}"
    for reason in dict.fromkeys(run.not_compared.values()):
        names = ", ".join(name for name, why in run.not_compared.items() if why == reason)
        yield f"  {'not compared':<{_WIDTH}} {names}: {reason}"


def _tensor(tensor: TensorComparison) -> Iterator[str]:
    if tensor.left_out:
        yield f"  {tensor.name:<{_WIDTH}} cannot be compared: {tensor.left_out}"
        return
    a, b = tensor.dtypes
    types = "" if a == b else f"; it is {a} in A and {b} in B, both compared as float32"
    differing = f"{tensor.num_differing:,} of {tensor.num_elements:,} elements differ"
    yield f"  {tensor.name:<{_WIDTH}} {differing}{types}"
    if tensor.first is not None:
        yield f"    first: {_element(tensor.first, tensor.name)}"
    if tensor.distance_R is None or not tensor.num_differing:
        return
    nan = f"; {tensor.num_nan:,} have a NaN" if tensor.num_nan else ""
    ulps = "none to measure" if tensor.max_ulps is None else f"{tensor.max_ulps:,} ULP at most"
    yield f"    apart: {ulps}{nan}"
    yield f"    Frobenius distance: {_distance(tensor.distance_R)}"


def _element(element: Element, name: str) -> str:
    rows = f"row {element.row_a}"
    if element.row_a != element.row_b:
        rows += f" of A, row {element.row_b} of B"
    place = f"step {element.step} ({rows})"
    if element.indices:
        place += f", element {list(element.indices)}"
    elif element.column is not None:
        place += f", {'of' if name == 'checksums' else 'token'} {element.column}"
    if element.dim is not None and not element.indices:
        place += f", dimension {element.dim}"
    values = zip("AB", element.values, element.bits, strict=True)
    words = " and ".join(f"{_number(value, bits)} in {side}" for side, value, bits in values)
    return f"{place}: {words}" + ("" if element.ulps is None else f", {element.ulps:,} ULP")


def _number(value: float | int, bits: int) -> str:
    return f"{value!r} (0x{bits:x})" if isinstance(value, float) else str(value)


def _distance(distance_R: Array) -> str:
    """Returns the largest and the last distance, and how many rows have none."""
    num_nan = int(np.count_nonzero(np.isnan(distance_R)))
    if num_nan == len(distance_R):
        return "NaN in every row"
    largest, last = np.nanmax(distance_R), distance_R[-1]
    nan = f"NaN in {counted(num_nan, 'row')}"
    if num_nan and largest == 0:
        return f"{nan}, 0 in the others"
    last_words = "NaN" if math.isnan(last) else f"{last:.6g}"
    return f"{largest:.6g} at most, {last_words} in the last row" + (f"; {nan}" if num_nan else "")
