"""Numbers and names as a report writes them."""

import math

from flannel_pl.analysis.statistics.series import Spread


def number(value: float | None) -> str:
    """Returns a number with six significant digits; a dash for none.

    Example:
        >>> number(0.51335712), number(366), number(None)
        ('0.513357', '366', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.6g}"


def plus_minus(mean: float | None, std: float | None) -> str:
    """Returns a mean with as many decimals as its standard deviation allows: three digits of that.

    Example:
        >>> plus_minus(0.5133571, 0.0185167), plus_minus(2, 0), plus_minus(366, None), plus_minus(None, None)
        ('0.5134 ± 0.0185', '2 ± 0', '366', '-')
    """
    if mean is None or std is None or not (math.isfinite(mean) and math.isfinite(std)):
        return number(mean)
    if std == 0:
        return f"{number(mean)} ± 0"
    decimals = 2 - math.floor(math.log10(std))
    if decimals > 9:
        return f"{number(mean)} ± {std:.2e}"
    return f"{mean:.{max(0, decimals)}f} ± {std:.{max(0, decimals)}f}"


def reached(over: Spread) -> str:
    """Returns how many runs have a number: of all, unless they all do.

    Example:
        >>> from flannel_pl.analysis.statistics.series import spread
        >>> reached(spread([1.0, 2.0])), reached(spread([1.0, None])), reached(spread([]))
        ('2', '1 of 2', '-')
    """
    if not over.num_reached:
        return "-"
    return f"{over.num_reached}" + (f" of {over.num_runs}" if over.num_reached < over.num_runs else "")


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun.

    Example:
        >>> counted(1, "run"), counted(3699, "token")
        ('1 run', '3,699 tokens')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_words(token_set: str) -> str:
    """Returns what a title calls a token set.

    Example:
        >>> in_words("dead"), in_words("all")
        ('the dead tokens', 'all tokens')
    """
    return "all tokens" if token_set == "all" else f"the {token_set} tokens"
