"""Types inside ``jax.shard_map``: over which axes of the mesh values vary.

There every array has such axes in its type, and the two ends of a loop or the
branches of a condition must agree in them. What is made of data has those of the
data; a constant has none.
"""

import jax
from jax import lax

from jprune._typing import Tree


def vary_like(tree: Tree, data: Tree) -> Tree:
    """``tree``, of a type that varies over all axes over which ``data`` does."""
    axes = frozenset[str]().union(*map(_axes, jax.tree.leaves(data)))

    def leaf(x: jax.Array) -> jax.Array:
        more = tuple(sorted(axes - _axes(x)))
        return lax.pcast(x, more, to="varying") if more else x

    return jax.tree.map(leaf, tree)


def _axes(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying
