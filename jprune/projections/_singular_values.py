"""Singular values clipped, or moved towards zero."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.calls import recorded
from jprune._core.checks import check_not_negative, check_radius
from jprune._core.scales import scale_of
from jprune._core.trees import at_least_float32
from jprune._core.typing import Projection, Scalar
from jprune.projections._leaves import axes_of


@recorded
def spectral_ball(
    radius: Scalar,
    *,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
) -> Projection:
    r"""Projects every matrix of a tree onto the ball of the spectral norm.

    .. math::

      P(U \operatorname{diag}(s) V^T) = U \operatorname{diag}(\min(s, r)) V^T
      = \arg\min_{\sigma_1(Z) \le r} \|U \operatorname{diag}(s) V^T - Z\|_F

    A layer :math:`x \mapsto x W` then stretches no input by more than
    :math:`r`.

    Args:
      radius: :math:`r > 0`, a number or a traced scalar.
      out_axis: The axes of output units: they are merged into the columns of the
        matrix, and the other axes into its rows, as in the fan-in of
        ``jax.nn.initializers``. A vector is one column. Static, as is
        ``batch_axis``.
      batch_axis: Axes along which a leaf holds separate matrices.

    Returns:
      A function of a tree of floating arrays to a tree of the same shapes and
      dtypes. Inside the ball it is the identity, bit for bit. It computes in
      float32 at least, scaled so that it can't overflow.

    Raises:
      ValueError: A concrete radius is not a positive number; when used, if an
        axis does not fit a leaf.

    Cost: one singular value decomposition per matrix. It is not sharded, and may
    cost more than the training step: see ``every`` of :func:`jprune.project`.

    References:
      Sedghi et al., `The Singular Values of Convolutional Layers
      <https://arxiv.org/abs/1805.10408>`_, 2019, section 3, for the projection.
      They project the convolution, and this function the kernel.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.projections.spectral_ball(1.)(jnp.diag(jnp.array([3., .5])))
    Array([[1. , 0. ],
           [0. , 0.5]], dtype=float32)
    """
    call = "spectral_ball"
    radius = check_radius(call, radius)
    # What is over the radius goes, so that what is inside stays bit for bit.
    return _of_matrices(
        call, lambda x: x - _shrunk(x, radius), out_axis, batch_axis
    )


@recorded
def nuclear(
    threshold: Scalar,
    *,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
) -> Projection:
    r"""Moves every singular value towards zero by ``threshold``: low rank.

    .. math::

      P(U \operatorname{diag}(s) V^T) = U \operatorname{diag}(\max(s - t, 0)) V^T
      = \arg\min_Z \tfrac12 \|U \operatorname{diag}(s) V^T - Z\|_F^2 + t \|Z\|_*

    It is the proximal map of the nuclear norm, the sum of singular values, and not a
    projection, as :func:`soft_threshold`. A matrix of rank zero is exactly zero;
    other low ranks hold up to rounding.

    Args:
      threshold: :math:`t \ge 0`, a number or a traced scalar.
      out_axis: The axes of columns, as in :func:`spectral_ball`.
      batch_axis: Axes along which a leaf holds separate matrices.

    Returns:
      A function of a tree of floating arrays to a tree of the same shapes and
      dtypes. It computes in float32 at least, scaled so that it can't overflow.

    Raises:
      ValueError: A concrete threshold is negative or NaN; when used, if an axis
        does not fit a leaf.

    Cost: that of :func:`spectral_ball`.

    References:
      Cai et al., `A Singular Value Thresholding Algorithm for Matrix Completion
      <https://arxiv.org/abs/0810.3286>`_, 2010, theorem 2.1.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.projections.nuclear(1.)(jnp.diag(jnp.array([3., .5])))
    Array([[2., 0.],
           [0., 0.]], dtype=float32)
    """
    call = "nuclear"
    threshold = check_not_negative(f"`{call}(threshold)`", threshold)
    return _of_matrices(
        call, lambda x: _shrunk(x, threshold), out_axis, batch_axis
    )


def _shrunk(x: jax.Array, threshold: Scalar) -> jax.Array:
    """Matrices ``[batch, rows, columns]``, singular values soft-thresholded."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    finite = jnp.isfinite(largest)  # LAPACK does not return from infinity
    scale = scale_of(jnp.where(finite, largest, 0))
    u, s, vh = jnp.linalg.svd(
        jnp.where(finite, x * scale, 0), full_matrices=False
    )
    lost = jnp.asarray(threshold, x.dtype) * scale[..., 0]
    left = u * jnp.maximum(s - lost, 0)[..., None, :]
    shrunk = jnp.matmul(left, vh, precision="highest") / scale
    return jnp.where(finite, shrunk, jnp.nan)


def _of_matrices(
    call: str,
    fn: Callable[[jax.Array], jax.Array],
    out_axis: int | Sequence[int],
    batch_axis: int | Sequence[int],
) -> Projection:
    """Applies ``fn`` to the matrices of every leaf."""

    def of_leaf(path: Any, leaf: Any) -> jax.Array:
        x = jnp.asarray(leaf)
        axes = axes_of(call, path, x.ndim, out_axis, batch_axis)
        if not x.size:
            return x
        order = sum(axes, ())
        sizes = [int(np.prod([x.shape[i] for i in part])) for part in axes]

        def matrices(x: jax.Array) -> jax.Array:
            moved = at_least_float32(x).transpose(order)
            landed = fn(moved.reshape(sizes)).reshape(moved.shape)
            return landed.transpose(np.argsort(order)).astype(x.dtype)

        sharding = jax.typeof(x).sharding
        # No decomposition of a matrix that lies on several devices.
        if not sharding.mesh.empty:
            matrices = jax.sharding.auto_axes(matrices, out_sharding=sharding)
        return matrices(x)

    return lambda tree: jax.tree_util.tree_map_with_path(of_leaf, tree)
