"""Types inside ``jax.shard_map``: over which axes of the mesh values vary.

There every array has such axes in its type, and the two ends of a loop or the
branches of a condition must agree in them. What is made of data has those of the
data; a constant has none.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax import lax
from jax.sharding import AbstractMesh, use_abstract_mesh

from jprune._core.typing import Tree


def vary_like(tree: Tree, data: Tree) -> Tree:
    """``tree``, of a type that varies over all axes over which ``data`` does."""
    axes = frozenset[str]().union(*map(_axes, jax.tree.leaves(data)))

    def leaf(x: jax.Array) -> jax.Array:
        more = tuple(sorted(axes - _axes(x)))
        return lax.pcast(x, more, to="varying") if more else x

    return jax.tree.map(leaf, tree)


def _axes(x: jax.Array) -> frozenset[str]:
    axes: frozenset[str] = jax.typeof(x).manual_axis_type.varying
    return axes


@contextmanager
def computed_now() -> Iterator[None]:
    """What is known is computed at once, also inside a trace or a ``shard_map``.

    In whose mesh nothing can be computed that has no part on each device.
    """
    nowhere = AbstractMesh((), ())
    with use_abstract_mesh(nowhere), jax.ensure_compile_time_eval():
        yield
