"""Refusals of bad input, at the earliest moment, with the call and the value.

Values that are traced pass: they have no value yet.
"""

import inspect
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.calls import is_recorded
from jprune._core.describe import describe
from jprune._core.trees import (
    is_bool,
    is_floating,
    is_hole,
    leaves_with_path,
    path_name,
)
from jprune._core.typing import Masks, Sparsity, Tree
from jprune._core.varying import computed_now

LATE = 2**24
"""A count of updates by which schedules have ended."""


def is_traced(value: Any) -> bool:
    """True for a value known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def check_number(call: str, value: Any) -> Any:
    """A concrete scalar as a Python number; a traced one as it is."""
    if is_traced(value):
        if value.ndim:
            raise ValueError(f"{call} must be a scalar, got {describe(value)}.")
        return value
    found = f"{call} must be a number, got {describe(value)}."
    if isinstance(value, bool | str) or getattr(value, "shape", ()) != ():
        raise ValueError(found)
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(found) from None


def check_sparsity(
    call: str, sparsity: Sparsity, name: str = "sparsity"
) -> Any:
    """A float in [0, 1], a traced scalar, or a schedule of the count.

    A schedule is asked for its value at a few counts, as int32 arrays. What it
    does elsewhere, or where it is traced, is not seen: see :func:`is_fraction`.
    """
    _check_no_tree(call, name, sparsity)
    place = f"`{call}({name}=...)`"
    if not callable(sparsity):
        number = check_number(place, sparsity)
        if isinstance(number, float) and not 0.0 <= number <= 1.0:
            raise ValueError(f"{place} must lie in [0, 1], got {number}.")
        return number
    with computed_now():
        for count in (0, 1, 10, 100, 1000, 10**4, 10**5, 10**6, LATE):
            try:
                value = sparsity(jnp.asarray(count, jnp.int32))
            except Exception as error:
                if count:
                    break  # a table may end; training finds out if it does
                raise ValueError(
                    f"{place} must be a number or a schedule (count -> number)"
                    f"; calling {describe(sparsity)} with an int32 array "
                    f"failed: {error}"
                ) from error
            check_rate(call, value, count, name)
    return sparsity


def check_rate(
    call: str, value: Any, count: Any, name: str = "sparsity"
) -> Any:
    """What a schedule gave at some count: a float in [0, 1], or traced."""
    number = check_number(f"`{call}({name}=...)` at count {count}", value)
    if is_traced(number):
        return number
    dtype = np.result_type(getattr(value, "dtype", np.float64))
    slack = rounding_of(dtype)
    if not -slack <= number <= 1 + slack:
        raise ValueError(
            f"`{call}({name}=...)` must lie in [0, 1], got {number} at count "
            f"{count}."
        )
    return min(max(number, 0.0), 1.0)


def rate_at(
    call: str, rate: Any, count: jax.Array, name: str = "sparsity"
) -> Any:
    """A number, or what a schedule gives at a count: a float or an array."""
    if not callable(rate):
        return rate
    value = rate(count)
    if isinstance(value, jax.Array):
        return value
    return check_rate(call, value, count, name)


def rounding_of(dtype: Any) -> float:
    """By how much a schedule's last value may miss 0 or 1."""
    real = jnp.issubdtype(dtype, jnp.floating)
    return 4 * float(jnp.finfo(dtype).eps) if real else 0.0


def is_fraction(value: jax.Array) -> jax.Array:
    """Whether what has no value yet lies in [0, 1]: NaN does not.

    What does not removes nothing: a program must not destroy all weights since
    its schedule is in percent.
    """
    slack = rounding_of(value.dtype)
    return (value >= -slack) & (value <= 1 + slack)


def _check_no_tree(call: str, name: str, sparsity: Any) -> None:
    """Refuses numbers for several layers."""
    if callable(sparsity) or jax.tree_util.all_leaves([sparsity]):
        return
    if jax.tree.leaves(sparsity):
        each = {
            "find_masks": "call it once for each, with `where=` for the layer "
            "and `masks=` for what was found before"
        }
        raise ValueError(
            f"`{call}({name}=...)` must be one number, got "
            f"{describe(sparsity)}. For layers with numbers of their own "
            f"{each.get(call, 'use `optax.partition`')}."
        )


def check_order(call: str, params: Any, sparsity: Any) -> None:
    """Refuses the parameters in the place of the sparsity."""
    number = jax.tree_util.all_leaves([params]) and not np.ndim(params)
    if number and any(map(np.ndim, jax.tree.leaves(sparsity))):
        raise ValueError(
            f"`{call}(params, sparsity)`: the parameters come first, got "
            f"{describe(params)} and {describe(sparsity)}."
        )


def check_fixed(call: str, sparsity: Any) -> Any:
    """A sparsity that is no schedule."""
    if callable(sparsity):
        raise ValueError(
            f"`{call}(sparsity=...)` must be a number, got the schedule "
            f"{describe(sparsity)}; schedules are for `prune`."
        )
    return check_sparsity(call, sparsity)


def check_radius(call: str, radius: Any) -> Any:
    """A positive float or a traced scalar."""
    radius = check_number(f"`{call}(radius)`", radius)
    if isinstance(radius, float) and not radius > 0.0:
        raise ValueError(
            f"`{call}(radius)` must be a positive number, got {radius}."
        )
    return radius


def check_not_negative(place: str, value: Any) -> Any:
    """A float >= 0 or a traced scalar."""
    number = check_number(place, value)
    if isinstance(number, float) and not number >= 0.0:
        raise ValueError(f"{place} must be a number >= 0, got {number}.")
    return number


def check_positive(place: str, value: Any) -> float:
    """A number above 0, known now, as a float."""
    number = check_number(place, value)
    if not isinstance(number, float) or not 0.0 < number < math.inf:
        raise ValueError(
            f"{place} must be a number above 0, got {describe(value)}."
        )
    return number


def check_integer(
    place: str,
    value: Any,
    least: int = 0,
    most: float = math.inf,
    *,
    words: str = "",
    static: bool = False,
) -> Any:
    """An int of some size or, unless ``static``, a traced integer scalar.

    A float may be whole. ``words`` are the range as an error says it.
    """
    traced = is_traced(value)
    if traced and not (static or value.ndim):
        fits = jnp.issubdtype(value.dtype, np.integer)
    else:
        number = check_number(place, value)
        fits = not traced and least <= number <= most and number.is_integer()
    if not fits:
        raise ValueError(
            f"{place} must be an integer {words or f'>= {least}'}, got "
            f"{describe(value)}."
        )
    return value if traced else int(number)


def check_every(
    call: str, every: Any, name: str = "every", least: int = 1
) -> Any:
    """An int of some size at least, or a traced scalar.

    Which may be a float: ``inject_hyperparams`` knows no integers.
    """
    place = f"`{call}({name}=...)`"
    if is_traced(every):
        return check_number(place, every)
    return check_integer(place, every, least)


def check_member(call: str, name: str, value: Any, kind: type) -> None:
    """Refuses what is not a ``kind``, first of all a factory left uncalled."""
    if isinstance(value, kind):
        return
    made = is_recorded(value)  # by some other factory: it was called
    if callable(value) and hasattr(value, "__name__") and not made:
        raise ValueError(
            f"`{call}({name}=...)` got the function `{value.__name__}` itself; "
            f"call it: `{name}={value.__name__}(...)`."
        )
    raise ValueError(
        f"`{call}({name}=...)` must be of type `{kind.__name__}`, got "
        f"{describe(value)}.{_did_you_mean(kind, value)}"
    )


def _did_you_mean(kind: type, name: Any) -> str:
    """The call that makes a member of a family, for those who wrote its name."""
    if not isinstance(name, str):
        return ""
    family = sys.modules[kind.__module__]
    factories = [word for word in family.__all__ if word.islower()]
    if name not in factories:
        return f" `{family.__name__}` has {', '.join(factories)}."
    options = inspect.signature(getattr(family, name)).parameters.values()
    needed = any(option.default is option.empty for option in options)
    return f" `{family.__name__}.{name}({'...' * needed})`?"


def check_params(call: str, params: Any) -> None:
    """Refuses a missing ``params`` argument of ``update``."""
    if params is None:
        raise ValueError(
            f"`{call}` needs the parameters: call "
            "`tx.update(updates, state, params)`, got params=None."
        )


def check_bool(place: str, mask: Any, hint: str = "") -> None:
    """Refuses masks of numbers."""
    if not is_bool(mask):
        found = getattr(mask, "dtype", type(mask).__name__)
        raise ValueError(f"{place} must be bool, got {found}.{hint}")


def check_state(call: str, masks: Masks, chosen: Tree | None = None) -> None:
    """Refuses masks that are not those of the transform.

    A wrapper around the pruner makes them into numbers:
    ``lookahead(reset_state=True)`` and ``sam`` mix old and new states as
    ``(1 - s) * old + s * new``, which also sets the count of updates back.

    Args:
      call: How the caller is named in errors.
      masks: Those of the state.
      chosen: The parameters that have masks, with holes elsewhere, if known.
    """
    held = leaves_with_path(masks)
    for path, mask in held:
        if hasattr(mask, "dtype"):
            check_bool(
                f"`{call}`: the mask of {path_name(path)!r} in the state",
                mask,
                " Wrappers that compute with the state of what they wrap, "
                "`lookahead(reset_state=True)` and `sam`, go inside: "
                "`optax.chain(optax.lookahead(...), jprune.prune(...))`.",
            )
    if chosen is None:
        return
    # By place and not by path: states may be restored without boxes.
    leaves = leaves_with_path(chosen)
    found, wanted = map(_shapes, (held, leaves))
    wrong = [i for i, x in enumerate(wanted) if found[i : i + 1] != [x]]
    if wrong or len(found) > len(wanted):
        path = (leaves + held[len(leaves) :])[[*wrong, len(leaves)][0]][0]
        raise ValueError(
            f"`{call}`: the mask of {path_name(path)!r} in the state is not one "
            "of this transform: is the state of other parameters, or restored "
            "from a transform with another `where` or `structure`?"
        )


def _shapes(leaves: list[Any]) -> list[tuple[int, ...] | None]:
    return [None if is_hole(x) else np.shape(x) for _, x in leaves]


def check_alike(call: str, wanted: Any, found: Any) -> None:
    """Refuses a state of another form: other leaves, shapes or dtypes."""
    if not jax.tree.leaves((wanted, found)):
        return  # how nothing is written does not matter
    old, new = (str(jax.tree.structure(state)) for state in (wanted, found))
    if old != new:
        raise ValueError(f"{call}, {old}, got {new}.")

    def check(path: Any, x: Any, y: Any) -> None:
        old, new = map(_type, (x, y))
        if old != new:
            raise ValueError(
                f"{call}: {path_name(path)!r} is {old}, got {new}."
            )

    jax.tree_util.tree_map_with_path(check, wanted, found)


def _type(x: Any) -> str:
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return f"{dtype} of shape {np.shape(x)}"


def check_memory(call: str, init: Any, params: Tree, state: Any) -> None:
    """Refuses a criterion's state that its ``init`` would not make."""
    check_alike(
        f"`{call}`: the state must be that of this criterion, as `init` gives "
        "it, and none restored from another",
        jax.eval_shape(init, params),
        state,
    )


def check_floating(call: str, path: tuple[Any, ...], leaf: Any) -> None:
    """Refuses a selected leaf that is not real floating."""
    if not is_floating(leaf):
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        raise ValueError(
            f"{call}: the leaf {path_name(path)!r} must be a real floating "
            f"array, got {dtype}."
        )
