"""What quantities remember from step to step, as it stands in checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from flannel_pl.errors import UserError
from flannel_pl.quantities.quantity import Quantity


def remembered(quantities: Sequence[Quantity], step: int) -> dict[str, Any]:
    """Returns what quantities remember, and of which step; nothing if none remembers anything."""
    states = [quantity.state_dict() for quantity in quantities]
    return {"quantities": states, "quantities_step": step} if any(states) else {}


def go_on_with(quantities: Sequence[Quantity], state: Mapping[str, Any], *, step: int) -> None:
    """Lets quantities go on with what they remembered.

    Args:
        quantities: Those that are recorded now.
        state: What `remembered` returned.
        step: After which training goes on.

    Raises:
        UserError: If it is of other quantities, or of another step.
    """
    states = state.get("quantities", [])
    if step > 0 and not states and any(quantity.state_dict() for quantity in quantities):
        raise UserError(
            f"the checkpoint of step {step} has nothing of what quantities remember; go on from one that was "
            "made while they were recorded"
        )
    if states and len(states) != len(quantities):
        raise UserError(
            f"the checkpoint has the state of {len(states)} quantities, and {len(quantities)} are "
            "recorded now; go on with those that the recording was begun with"
        )
    if states and state.get("quantities_step") != step:
        raise UserError(
            f"the checkpoint of step {step} has what quantities remember of step "
            f"{state.get('quantities_step')}, because it was made before the recorder's turn; go on from "
            "one that the recorder has made (checkpoint_every)"
        )
    for quantity, of_it in zip(quantities, states, strict=False):
        quantity.load_state_dict(of_it)
