"""Which tensor of a model a name stands for."""

import difflib
import fnmatch
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from flannel_pl.errors import UserError

_COMPILED = "_orig_mod."
"""What `torch.compile` puts into the names of what it wraps."""

EVERY = "all"

MAX_NAMED = 12


def without_wrapper(name: str) -> str:
    """Returns a name without what compiling puts into it.

    Example:
        >>> without_wrapper("_orig_mod.head.weight")
        'head.weight'
    """
    return name.replace(_COMPILED, "")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns name -> every parameter and buffer; a tied one under each of its names."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {without_wrapper(name): tensor for name, tensor in named}


def find_named(module: nn.Module, name: str) -> tuple[str, Tensor]:
    """Returns the full name of a parameter or buffer, and the tensor.

    Args:
        module: What is trained.
        name: As in `named_parameters()`, with or without what compiling puts in; of a tied one any of its
            names; or the end of a name that no other tensor has.

    Raises:
        UserError: If there is none, or several.
    """
    there = tensors_of(module)
    name = without_wrapper(name)
    if name in there:
        return name, there[name]
    found = {id(one): (full, one) for full, one in there.items() if full.endswith(f".{name}")}
    if len(found) == 1:
        return next(iter(found.values()))
    raise UserError(
        f"the module has {'several parameters' if found else 'no parameter'} {name!r} to record; "
        f"{_instead(module, name, there)}"
    )


def path_of(module: nn.Module, name: str) -> str:
    """Returns a parameter's name with what compiling puts in, for `get_parameter`.

    Args:
        module: What is trained.
        name: Full name, as `find_named` gives it.
    """
    paths = dict(module.named_parameters(remove_duplicate=False))
    return next((path for path in paths if without_wrapper(path) == name), name)


def place_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Returns the module that has a tensor, and what it calls it: a buffer may be another object at any time.

    Args:
        module: What is trained.
        name: Full name, as `find_named` gives it.
    """
    owner, _, last = name.rpartition(".")
    return {without_wrapper(one): each for one, each in module.named_modules()}[owner], last


def expand(module: nn.Module, wanted: Mapping[str, str]) -> dict[str, str]:
    """Returns alias -> full name of each tensor that is wanted.

    Args:
        module: What is trained.
        wanted: Alias -> a name, see `find_named`; or a pattern with * or ?, or `all` for every parameter:
            then each has its full name for an alias.

    Raises:
        UserError: If a name or a pattern stands for nothing.
    """
    found: dict[str, str] = {}
    of_tensor: dict[int, str] = {}
    for alias, name in wanted.items():
        if is_pattern(name):
            continue
        full, tensor = find_named(module, name)
        if (other := of_tensor.setdefault(id(tensor), alias)) != alias:
            raise UserError(f"recorder.parameters has {other!r} and {alias!r} for {full}; name it once")
        found[alias] = full
    # A pattern makes no other alias of what has one, and takes no name that is one.
    for name in filter(is_pattern, wanted.values()):
        for full, tensor in _like(module, name).items():
            if of_tensor.setdefault(id(tensor), full) == full and found.setdefault(full, full) != full:
                raise UserError(
                    f"recorder.parameters calls {found[full]} {full!r}, which is the name of another one "
                    f"that {name!r} stands for; give it another alias"
                )
    return found


def is_pattern(name: str) -> bool:
    """Tells whether a name stands for several: it has * or ?, or is `all`."""
    return name == EVERY or any(mark in name for mark in "*?[")


def _like(module: nn.Module, name: str) -> dict[str, Tensor]:
    there = tensors_of(module)
    if name == EVERY:
        # One without any element, e.g. a table of no tokens, has nothing to record.
        return {without_wrapper(full): one for full, one in module.named_parameters() if one.numel()}
    found = {full: one for full, one in there.items() if fnmatch.fnmatchcase(full, name)}
    if not found:
        raise UserError(
            f"recorder.parameters has {name!r}, which is like the name of no parameter; "
            f"{_instead(module, name, there)}"
        )
    return found


def _instead(module: nn.Module, name: str, there: Mapping[str, Tensor]) -> str:
    owner, _, last = name.rpartition(".")
    modules = {without_wrapper(one): each for one, each in module.named_modules()}
    if owner in modules and parametrize.is_parametrized(modules[owner], last):
        inner = [one for one in there if one.startswith(f"{owner}.parametrizations.{last}.")]
        return f"it is computed from {', '.join(inner)}; record those"
    # As torch.nn.utils.weight_norm and spectral_norm did it before there were parametrizations.
    if owner in modules and isinstance(vars(modules[owner]).get(last), Tensor):
        inner = [one for one in there if one.startswith(f"{name}_")]
        return f"it is computed from {', '.join(inner) or 'others'}; record those"
    if len(there) <= MAX_NAMED:
        return f"it has {what_there_is(module)}"
    return f"it has, e.g., {', '.join(difflib.get_close_matches(name, list(there), n=3, cutoff=0.0))}"


def what_there_is(module: nn.Module) -> str:
    """Names the parameters and buffers of a module, as far as that is short."""
    names = sorted(tensors_of(module))
    more = f", ... ({len(names)} in all)" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED]) or 'none'}{more}"
