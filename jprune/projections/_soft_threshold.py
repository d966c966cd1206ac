"""Soft thresholds: lasso and group lasso."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune._core.calls import recorded
from jprune._core.checks import check_not_negative
from jprune._core.scales import sum_of_squares
from jprune._core.trees import at_least_float32
from jprune._core.typing import Projection, Scalar, Tree
from jprune.projections._leaves import axes_of


@recorded
def soft_threshold(threshold: Scalar) -> Projection:
    r"""Moves every entry towards zero by ``threshold``, as the lasso does.

    .. math::

      P(w) = \arg\min_v \tfrac12 \|w - v\|_2^2 + t \|v\|_1
           = \operatorname{sign}(w) \max(|w| - t, 0)

    It is the proximal map of :math:`t \|\cdot\|_1`, and not a projection: applied
    again, it moves entries further. It never moves two points further apart. It is
    the identity minus ``optax.projections.projection_linf_ball``.

    For a penalty :math:`\lambda \|w\|_1`, use :math:`t = \eta \lambda` after a step
    of gradient descent with learning rate :math:`\eta`.

    Args:
      threshold: :math:`t \ge 0`, a number or a traced scalar.

    Returns:
      A function of a tree of floating arrays to a tree of the same shapes and
      dtypes. The zeros are exact.

    Raises:
      ValueError: A concrete threshold is negative or NaN.

    Cost: one fused pass.

    References:
      Daubechies et al., `An iterative thresholding algorithm
      <https://arxiv.org/abs/math/0307152>`_, 2004 (ISTA).

    >>> import jax.numpy as jnp, jprune
    >>> jprune.projections.soft_threshold(1.)(jnp.array([3., -.5, -4.]))
    Array([ 2.,  0., -3.], dtype=float32)
    """
    threshold = check_not_negative("`soft_threshold(threshold)`", threshold)

    def shrink(leaf: Any) -> jax.Array:
        x = at_least_float32(leaf)
        near: jax.Array = optax.projections.projection_linf_ball(x, threshold)
        return (x - near).astype(jnp.result_type(leaf))

    return lambda tree: jax.tree.map(shrink, tree)


@recorded
def group_soft_threshold(
    threshold: Scalar,
    *,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
) -> Projection:
    r"""Moves every group towards zero by ``threshold``, as the group lasso does.

    .. math::

      P(W)_g = W_g \max(1 - t / \|W_g\|_2, 0)
             = \arg\min_V \tfrac12 \|W_g - V\|_2^2 + t \|V\|_2

    A group is all weights of one output unit: a column of a dense kernel, or a
    filter of a convolution. A vector is one group. It is a proximal map and not a
    projection, as :func:`soft_threshold`.

    Args:
      threshold: :math:`t \ge 0`, a number or a traced scalar.
      out_axis: The axes of output units, as in ``jax.nn.initializers``. For each of
        their indices, the entries along all other axes form one group. ``-2`` groups
        a dense kernel by inputs. Static, as is ``batch_axis``.
      batch_axis: Axes along which a leaf holds separate layers.

    Returns:
      A function of a tree of floating arrays to a tree of the same shapes and
      dtypes. The zeros are exact. Norms accumulate in float32 at least and can't
      overflow.

    Raises:
      ValueError: A concrete threshold is negative or NaN; when used, if an axis
        does not fit a leaf.

    Cost: two reads, and one read and write.

    References:
      Yuan and Lin, `Model selection and estimation in regression with grouped
      variables <https://doi.org/10.1111/j.1467-9868.2005.00532.x>`_, 2006; Wen
      et al., `Learning Structured Sparsity in Deep Neural Networks
      <https://arxiv.org/abs/1608.03665>`_, 2016.

    >>> import jax.numpy as jnp, jprune
    >>> shrink = jprune.projections.group_soft_threshold(1.)
    >>> shrink(jnp.array([[3., .6], [4., .6]]))  # norms 5 and .85
    Array([[2.4, 0. ],
           [3.2, 0. ]], dtype=float32)
    """
    call = "group_soft_threshold"
    threshold = check_not_negative(f"`{call}(threshold)`", threshold)

    def shrink(path: Any, leaf: Any) -> jax.Array:
        x = at_least_float32(leaf)
        if not x.size:
            return jnp.asarray(leaf)
        axes = axes_of(call, path, x.ndim, out_axis, batch_axis).rows
        squares, scale = sum_of_squares(x, axes)
        norm = jnp.sqrt(jnp.where(squares == 0, 1, squares))
        lost = jnp.asarray(threshold, x.dtype) * scale / norm
        return (x * jnp.maximum(1 - lost, 0)).astype(jnp.result_type(leaf))

    def project(tree: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(shrink, tree)

    return project
