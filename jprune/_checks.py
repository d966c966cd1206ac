"""Refusals of bad input, at the earliest moment, with the call and the value.

Values that are traced pass: they have no value yet.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._trees import (
    align,
    is_array,
    is_floating,
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
)
from jprune._typing import Masks, Sparsity, Tree, Where
from jprune._varying import computed_now

LATE = 2**24
"""A count of updates by which schedules have ended."""

_NEVER_PRUNED = ("bias", "scale", "mean", "var")


def is_traced(value: Any) -> bool:
    """True for a value known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def check_number(call: str, value: Any) -> Any:
    """A concrete scalar as a Python number; a traced one as it is."""
    if is_traced(value):
        if value.ndim:
            raise ValueError(f"{call} must be a scalar, got {value}.")
        return value
    if isinstance(value, bool | str) or np.ndim(value) != 0:
        raise ValueError(f"{call} must be a number, got {value!r}.")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{call} must be a number, got {value!r}.") from None


def check_sparsity(
    call: str, sparsity: Sparsity, name: str = "sparsity"
) -> Any:
    """A float in [0, 1], a traced scalar, or a schedule of the count.

    A schedule is asked for its value at a few counts, as int32 arrays. What it
    does elsewhere, or where it is traced, is not seen: see :func:`is_fraction`.
    """
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
                    f"; calling {sparsity!r} with an int32 array failed: {error}"
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


def check_fixed(call: str, sparsity: Any) -> Any:
    """A sparsity that is no schedule."""
    if callable(sparsity):
        raise ValueError(
            f"`{call}(sparsity=...)` must be a number, got the schedule "
            f"{sparsity!r}; schedules are for `prune`."
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


def check_threshold(call: str, threshold: Any) -> Any:
    """A float >= 0 or a traced scalar."""
    threshold = check_number(f"`{call}(threshold)`", threshold)
    if isinstance(threshold, float) and not threshold >= 0.0:
        raise ValueError(
            f"`{call}(threshold)` must be a number >= 0, got {threshold}."
        )
    return threshold


def check_count(call: str, count: Any) -> Any:
    """An int >= 0 or a traced integer scalar."""
    if is_traced(count):
        if count.ndim or not jnp.issubdtype(count.dtype, np.integer):
            raise ValueError(f"{call} must be an integer, got {count}.")
        return count
    number = check_number(call, count)
    if number < 0 or not number.is_integer():
        raise ValueError(f"{call} must be an integer >= 0, got {count}.")
    return int(number)


def check_every(
    call: str, every: Any, name: str = "every", least: int = 1
) -> Any:
    """An int of some size at least, or a traced integer."""
    number = check_number(f"`{call}({name}=...)`", every)
    if is_traced(number):
        return number
    if number < least or not number.is_integer():
        raise ValueError(
            f"`{call}({name}=...)` must be an integer >= {least}, got {every}."
        )
    return int(number)


def check_member(call: str, name: str, value: Any, kind: type) -> None:
    """Refuses what is not a ``kind``, first of all a factory left uncalled."""
    if isinstance(value, kind):
        return
    if callable(value) and hasattr(value, "__name__"):
        raise ValueError(
            f"`{call}({name}=...)` got the function `{value.__name__}` itself; "
            f"call it: `{name}={value.__name__}(...)`."
        )
    raise ValueError(
        f"`{call}({name}=...)` must be a `{kind.__name__}`, got {value!r}."
    )


def check_params(call: str, params: Any) -> None:
    """Refuses a missing ``params`` argument of ``update``."""
    if params is None:
        raise ValueError(
            f"`{call}` needs the parameters: call "
            "`tx.update(updates, state, params)`, got params=None."
        )


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
        dtype = getattr(mask, "dtype", np.bool_)
        if not jnp.issubdtype(dtype, np.bool_):
            raise ValueError(
                f"`{call}`: the mask of {path_name(path)!r} in the state must be "
                f"bool, got {dtype}. Wrappers that compute with the state of "
                "what they wrap, `lookahead(reset_state=True)` and `sam`, go "
                "inside: `optax.chain(optax.lookahead(...), jprune.prune(...))`."
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


def check_where(call: str, where: Where) -> None:
    """Refuses a regular expression that does not compile."""
    if isinstance(where, str):
        try:
            re.compile(where)
        except re.error as error:
            raise ValueError(
                f"`{call}(where=...)`: the regular expression {where!r} does "
                f"not compile: {error}."
            ) from None


def prunable(path: tuple[Any, ...], leaf: Any) -> bool:
    """The default of pruning: kernels; not biases, norm scales, embeddings."""
    own = path_name(path[-1:])
    return (
        is_floating(leaf)
        and np.ndim(leaf) >= 2
        and own not in _NEVER_PRUNED
        and "embed" not in own.lower()
    )


def floating(path: tuple[Any, ...], leaf: Any) -> bool:
    """The default of projections: every floating leaf."""
    del path  # the formulas make no difference between W and b
    return is_floating(leaf)


def select(call: str, where: Where, params: Tree, default: Any) -> list[bool]:
    """Which leaves are meant, one bool per leaf or hole of ``params``.

    Args:
      call: How the caller is named in errors.
      where: The selection: a bool tree or prefix, a callable, or a regex.
      params: The parameters.
      default: ``(path, leaf) -> bool``, used where ``where`` is ``None``.

    Raises:
      ValueError: Nothing is selected, or something that is not real floating.
    """
    leaves = leaves_with_path(params)
    if not jax.tree.leaves(params):
        return [False] * len(leaves)
    call = f"`{call}(where=...)`"
    chosen: list[Any]
    if where is None:
        chosen = [default(path, leaf) for path, leaf in leaves]
    elif isinstance(where, str):
        chosen = [bool(re.search(where, path_name(p))) for p, _ in leaves]
    else:
        tree = where(params) if callable(where) else where
        chosen = align(tree, params, call, prefix=True)
    selected = []
    for (path, leaf), choice in zip(leaves, chosen, strict=True):
        if choice is not None and not isinstance(choice, bool | np.bool_):
            raise ValueError(
                f"{call}: the leaf {path_name(path)!r} must be True or False, "
                f"got {choice!r}."
            )
        if choice and is_array(leaf):
            check_floating(call, path, leaf)
        selected.append(bool(choice) and is_array(leaf))
    if not any(selected):
        names = ", ".join(path_name(path) for path, _ in leaves[:8])
        raise ValueError(
            f"{call} selects no parameter, got {where!r}; "
            f"the leaves are: {names}{', ...' if len(leaves) > 8 else ''}."
        )
    return selected


def choose(call: str, where: Where, params: Tree, default: Any) -> Tree:
    """``params`` with ``MaskedNode`` in place of what is not selected."""
    selected = select(call, where, params, default)
    leaves = [
        leaf if pick or leaf is None else optax.MaskedNode()
        for (_, leaf), pick in zip(
            leaves_with_path(params), selected, strict=True
        )
    ]
    return rebuild(params, leaves)


def check_floating(call: str, path: tuple[Any, ...], leaf: Any) -> None:
    """Refuses a selected leaf that is not real floating."""
    if not is_floating(leaf):
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        raise ValueError(
            f"{call}: the leaf {path_name(path)!r} must be a real floating "
            f"array, got {dtype}."
        )
