"""Parameters as a program multiplies them, and back: plain steps, no arrays.

A *view* is a tuple of steps from a parameter to what a program reads: it is only moved
and cut. :func:`look` takes the steps, :func:`put` writes back what was seen.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Step: TypeAlias = tuple[Any, ...]
"""``("transpose", axes)``, ``("reshape", shape)``, ``("slice", starts, stops,
strides)``, ``("index", layer)`` or ``("map", steps)``: the steps of every layer of a
stack."""

Steps: TypeAlias = tuple[Step, ...]


def look(steps: Steps, leaf: Any) -> jax.Array:
    """What a view shows of a parameter, or of anything of its shape."""
    seen: jax.Array = leaf
    for step in steps:
        seen = _look(step, seen)
    return seen


def put(steps: Steps, leaf: Any, seen: jax.Array) -> jax.Array:
    """The parameter with ``seen`` where the view looks; the rest as it was."""
    if not steps:
        return seen
    first, *rest = steps
    inner = put(tuple(rest), _look(first, leaf), seen) if rest else seen
    return _put(first, leaf, inner)


def overlap(ways: Iterable[Steps], shape: tuple[int, ...]) -> bool:
    """Whether several views of a parameter show some element more than once."""
    ways = list(ways)
    seen = jnp.zeros(shape, jnp.int32)
    for steps in ways if len(ways) > 1 else []:
        zeros = jnp.zeros_like(seen)
        seen += put(steps, zeros, jnp.ones_like(look(steps, zeros)))
    return int(seen.max(initial=0)) > 1


def _look(step: Step, x: Any) -> jax.Array:
    kind, *rest = step
    if kind == "transpose":
        return jnp.transpose(x, rest[0])
    if kind == "reshape":
        return jnp.reshape(x, rest[0])
    if kind == "slice":
        return lax.slice(x, *rest)
    if kind == "index" and isinstance(x, np.ndarray):
        layer: Any = x[rest[0]]  # of what lies on the host only this is moved
        return layer  # type: ignore[no-any-return]
    if kind == "index":  # not a constant: one program serves all layers
        result: jax.Array = lax.dynamic_index_in_dim(
            x, np.int32(rest[0]), keepdims=False
        )
        return result
    return jax.vmap(lambda one: look(rest[0], one))(x)


def _put(step: Step, x: Any, new: jax.Array) -> jax.Array:
    kind, *rest = step
    if kind == "transpose":
        return jnp.transpose(new, np.argsort(rest[0]).tolist())
    if kind == "reshape":
        return jnp.reshape(new, jnp.shape(x))
    if kind == "slice":
        box = tuple(map(slice, *rest))
        return jnp.asarray(x).at[box].set(new)
    if kind == "index":
        result: jax.Array = lax.dynamic_update_index_in_dim(
            x, new, np.int32(rest[0]), 0
        )
        return result
    return jax.vmap(lambda one, seen: put(rest[0], one, seen))(x, new)
