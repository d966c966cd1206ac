"""The k best of a tree."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._core import counts as _counts
from jprune._core.checks import check_floating, check_integer, is_traced
from jprune._core.counts import Count
from jprune._core.trees import (
    is_hole,
    layer_names,
    leaves_with_path,
    rebuild,
)
from jprune._core.typing import Masks, Tree
from jprune.selection.select import select


def top_k_mask(scores: Tree, k: jax.typing.ArrayLike) -> Masks:
    """Marks exactly the ``k`` largest scores of a whole tree.

    The order is that of ``jnp.argsort(descending=True, stable=True)`` over all
    leaves in turn: NaN comes first, -0 equals 0, and ties are broken by leaf and
    then by flat index.

    Args:
      scores: A tree of floating arrays of any shapes and precisions; ``None``
        and ``optax.MaskedNode`` are skipped.
      k: How many to mark, an integer from 0 to the number of scores. A traced
        ``k`` outside this range is clipped.

    Returns:
      A tree like ``scores`` of bool arrays with exactly ``k`` True.

    Raises:
      ValueError: A leaf is not floating, or a concrete ``k`` is no integer from
        0 to the number of scores.

    Cost: a few passes that count and one that writes the mask. More are needed if
    interpolation does not fit the scores, or to break ties.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.selection.top_k_mask({"a": jnp.array([3., 1.]), "b": 2.}, 2)
    {'a': Array([ True, False], dtype=bool), 'b': Array(True, dtype=bool)}
    """
    leaves = leaves_with_path(scores)
    for path, leaf in leaves:
        if not is_hole(leaf):
            check_floating("`top_k_mask(scores, k)`", path, leaf)
    units = [jnp.asarray(x) for _, x in leaves if not is_hole(x)]
    wanted = _checked_k(k, sum(x.size for x in units))
    names = layer_names(jax.tree.structure(scores))
    masks = iter(select(units, wanted, names=names) if units else [])
    return rebuild(
        scores, [x if is_hole(x) else next(masks) for _, x in leaves]
    )


def _checked_k(k: Any, size: int) -> Count:
    """``k`` as a count; clipped if it is traced."""
    k = check_integer(
        "`top_k_mask(scores, k)`: k",
        k,
        most=size,
        words=f"from 0 to {size}, the number of scores",
    )
    if not is_traced(k):
        return _counts.count_of(k)
    wanted = _counts.count_of(jnp.maximum(k, 0))
    most = _counts.count_of(size)
    return _counts.where(_counts.less(most, wanted), most, wanted)
