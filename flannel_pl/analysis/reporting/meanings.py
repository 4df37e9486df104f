"""What the names of metrics and key figures mean, in a few plain words each.

The page shows them; `docs/report.md` has the formulas, and in its tables these words (`test_report_doc.py`).
"""

from collections.abc import Iterable

MEANINGS = {
    "origin_radius": "mean distance of the tokens from zero",
    "centroid_radius": "mean distance of the tokens from their centroid: size of the cloud",
    "bounding_radius": "distance of the farthest token from the centroid",
    "std_per_dim": "standard deviation over the tokens, mean over dimensions",
    "centroid_norm": "distance of the centroid from zero",
    "centroid_drift": "distance of the centroid from where it began",
    "separation": "distance between the centroids of live and dead tokens",
    "token_speed": "mean length of the tokens' steps",
    "centroid_speed": "length of the centroid's step",
    "thermal_speed": "mean length of the tokens' steps without the centroid's",
    "path_efficiency": "how far the centroid has come, as a part of the way that it went: 1 is straight",
    "radial_fraction": "part of a token's step that leads away from zero, below 0 towards it",
    "abs_radial_fraction": "part of a token's step that leads away from zero or towards it",
    "outward_fraction": "part of the tokens that came farther from zero",
    "inward_fraction": "part of the tokens that came nearer to zero",
    "zero_fraction": "part of the tokens that stayed as far from zero",
    "frozen_fraction": "part of the tokens of which no bit changed since the row before",
    "zero_component_fraction": "part of the components that did not change",
    "lattice_l1": "mean length of the tokens' steps in lattice points, summed over components",
    "lattice_l2": "mean length of the tokens' steps in lattice points, as the crow flies",
    "lattice_linf": "mean over the tokens of the largest jump of a component, in lattice points",
    "lattice_hop_fraction": "part of the tokens that moved by no more than some lattice points",
    "thermal_hop_fraction": "part of the tokens that moved farther than that",
    "cos_grad_step": "cosine of the angle between a token's gradient and its step, median: -1 is downhill",
    "adam_exact_fraction": "part of the components that Adam's formula reproduces to the bit",
    "adam_within_one_fraction": "part of the components that Adam's formula misses by one ULP at most",
    "loss": "mean cross-entropy over the predicted tokens of a batch, in nats",
    "learning_rate": "the rate that the step used",
    "grad_norm": "length of the whole gradient, before clipping",
    "lift-off step": "the first step at which the centroid is farther from zero than any token is from it",
    "freeze step": "the step of a token's last change; by it a quarter of the tokens are at rest (q25), half "
    "(median), three quarters (q75), all (max)",
    "fraction of tokens still moving": "part of the tokens that changed in the last row",
}


def base_name(name: str) -> str:
    """Returns the name behind a key figure's, or one in words.

    Example:
        >>> base_name("origin_radius, end"), base_name("origin radius"), base_name("lift-off step")
        ('origin_radius', 'origin_radius', 'lift-off step')
    """
    base = name.partition(", ")[0]
    joined = base.replace(" ", "_")
    return joined if joined in MEANINGS else base


def meaning_of(name: str) -> str:
    """Returns what a name means; empty if that is not known."""
    return MEANINGS.get(base_name(name), "")


def meanings_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns names and what they mean, each once; those that are not known are left out."""
    bases = dict.fromkeys(base_name(name) for name in names)
    return [(name, MEANINGS[name]) for name in bases if name in MEANINGS]
