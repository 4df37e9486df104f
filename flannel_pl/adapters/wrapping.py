"""A method of one object with something around it, until that is taken off again."""

from collections.abc import Callable
from typing import Any


class Wrapped:
    """Stands in the place of a method of an object, whose class stays as it is.

    Several may be around each other, and be taken off in any order. A copy of the object has the method
    alone.

    Args:
        owner: The object.
        name: Of the method.
        around: Called with the method and its arguments; returns what it returns.
    """

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        self._owner, self._name, self._around = owner, name, around
        self._is_on = True
        self._was_own = name in vars(owner)
        self._inner = getattr(owner, name)
        vars(owner)[name] = self

    @property
    def __wrapped__(self) -> Any:
        """The method itself, for whoever asks for its signature, or whether it is overridden."""
        return self._inner.__wrapped__ if isinstance(self._inner, Wrapped) else self._inner

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Calls the method, with what is around it as long as it is."""
        if self._is_on:
            return self._around(self._inner, *arguments, **options)
        return self._inner(*arguments, **options)

    def take_off(self) -> None:
        """Leaves the method as it was. Under what somebody else has put around this, it only passes on."""
        self._is_on = False
        above, here = None, vars(self._owner).get(self._name)
        while isinstance(here, Wrapped) and here is not self:
            above, here = here, here._inner
        if here is not self:
            return
        if above is not None:
            above._inner, above._was_own = self._inner, self._was_own
        elif self._was_own:
            vars(self._owner)[self._name] = self._inner
        else:
            del vars(self._owner)[self._name]

    def __reduce__(self) -> Any:
        return _itself, (self._inner,)


def _itself(method: Any) -> Any:
    return method
