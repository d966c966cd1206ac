"""What calls that trace a function refuse, with the place and the value."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.checks import is_traced
from jprune._core.describe import describe
from jprune._core.trees import is_hole, leaves_with_path, path_name
from jprune._core.typing import Tree


def check_call(
    call: str, fn: Any, params: Tree, args: tuple[Any, ...], concrete: bool
) -> None:
    """Refuses what can't be traced and, where parameters are read, shapes.

    Parameters whose sizes are symbols are refused everywhere.
    """
    if not callable(fn):
        raise ValueError(
            f"`{call}(fn, params, *args)`: fn must be a function, got "
            f"{describe(fn)}."
        )
    for path, x in leaves_with_path(params):
        place = (
            f"`{call}(fn, params, *args)`: the parameter {path_name(path)!r}"
        )
        if is_hole(x):
            continue
        _check_array(place, x)
        _check_sizes(place, x)
        if concrete:
            check_concrete(place, x)
    for i, arg in enumerate(args):
        for path, x in leaves_with_path(arg):
            if not is_hole(x):
                name = f"args[{i}], {path_name(path)!r},"
                _check_array(f"`{call}(fn, params, *args)`: {name}", x)


def bound(call: str, fn: Any, static: dict[str, Any]) -> Any:
    """The function with its static keyword arguments; arrays are refused."""
    for name, value in static.items():
        if any(hasattr(x, "dtype") for x in jax.tree.leaves(value)):
            raise ValueError(
                f"`{call}(..., {name}=...)` holds arrays, and keyword arguments are "
                "static: give arrays by position, or fix them by "
                "`functools.partial`."
            )
    return functools.partial(fn, **static) if static else fn


def _check_array(place: str, x: Any) -> None:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return
    try:
        jnp.result_type(x)
    except TypeError:
        raise ValueError(
            f"{place} must be an array, a shape or a number, got "
            f"{describe(x)}; what is fixed goes into the function, by `functools.partial` say."
        ) from None


def _check_sizes(place: str, x: Any) -> None:
    """Refuses symbols of ``jax.export``: units are counted, one by one."""
    shape = np.shape(x)
    if not all(isinstance(size, int | np.integer) for size in shape):
        raise ValueError(
            f"{place} must have sizes that are numbers, got the shape {shape}; only "
            "axes of arguments may be symbols."
        )


def check_concrete(place: str, x: Any) -> None:
    """Refuses what has no values yet."""
    if is_traced(x) or isinstance(x, jax.ShapeDtypeStruct):
        kind = "a traced value" if is_traced(x) else "a shape"
        raise ValueError(
            f"{place} must have values, got {kind}; call it outside `jit`."
        )


def check_values(call: str, args: tuple[Any, ...]) -> None:
    """Refuses arguments that have no values yet."""
    for i, arg in enumerate(args):
        for path, x in leaves_with_path(arg):
            check_concrete(f"`{call}`: args[{i}], {path_name(path)!r},", x)
