"""At most so many entries."""

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune._core.checks import check_integer, is_traced
from jprune._core.trees import kept_only
from jprune._core.typing import Projection, Tree
from jprune.selection import top_k_mask


@recorded
def l0_ball(max_nonzero: int | jax.typing.ArrayLike) -> Projection:
    r"""Projects a tree onto the trees with at most ``max_nonzero`` nonzero entries.

    .. math::

      P(w) = \arg\min_{\|v\|_0 \le k} \|w - v\|_2

    It keeps the :math:`k` entries of the whole tree with the largest magnitudes, and
    sets the others to zero. The set is not convex: ties are broken as in
    :func:`jprune.selection.top_k_mask`, and the projection may move two points
    further apart.

    Args:
      max_nonzero: :math:`k \ge 0`, an integer, which may be traced. If it exceeds the
        number of entries, nothing changes.

    Returns:
      A function of a tree of floating arrays to a tree of the same shapes and
      dtypes; entries that are kept keep their bits.

    Raises:
      ValueError: ``max_nonzero`` is not an integer, or negative.

    Cost: that of :func:`jprune.selection.top_k_mask`, plus one pass.

    References:
      Blumensath and Davies, `Iterative Thresholding for Sparse Approximations
      <https://doi.org/10.1007/s00041-008-9035-z>`_, 2008.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.projections.l0_ball(2)(
    ...     {"a": jnp.array([3., -1.]), "b": jnp.array([-2.])})
    {'a': Array([3., 0.], dtype=float32), 'b': Array([-2.], dtype=float32)}
    """
    wanted = check_integer("`l0_ball(max_nonzero)`", max_nonzero)

    def project(tree: Tree) -> Tree:
        leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
        scores = [jnp.abs(jax.lax.stop_gradient(x)) for x in leaves]
        k = wanted
        if not is_traced(k):
            k = min(k, sum(x.size for x in leaves))
        kept = top_k_mask(scores, k)
        return jax.tree.unflatten(
            jax.tree.structure(tree),
            [kept_only(mask, x) for x, mask in zip(leaves, kept, strict=True)],
        )

    return project
