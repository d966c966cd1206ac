"""What outputs miss without a weight, all others repaired."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core.calls import recorded
from jprune._core.checks import check_not_negative, is_traced
from jprune._core.stats import Moments, Stats
from jprune.criteria._base import Criterion
from jprune.criteria._inputs import Inputs, by_inputs, inputs_of


def curvature(stats: Stats, damping: float = 0.01) -> Criterion:
    r"""Keeps the weights that others can replace least: :math:`w_{ij}^2 / [H^{-1}]_{ii}`.

    Without damping, the score is how much the sum of the output's squared errors
    rises if the weight is removed and the others of its output are refitted.
    :math:`H` is the sum of :math:`x x^T` over all rows that ``calibrate`` saw. If
    outputs have a bias, :math:`x` is centred, because the bias can take up the mean.
    With :func:`jprune.units` the score of a unit is the sum over the rows of kernels
    that read it.

    Args:
      stats: What :func:`jprune.calibrate` returned; matched as for
        :func:`activation`.
      damping: This multiple of the mean of the diagonal of :math:`H` is added to the
        diagonal.

    Returns:
      A :class:`Criterion`. Its state holds the roots of :math:`1 / [H^{-1}]_{ii}`, in
      float32 at least, like the parameters. An input that was never active scores 0;
      so does one that never varied if there is a bias. Cost: one Cholesky factor of
      each Gram matrix, computed here.

    Raises:
      ValueError: ``stats`` is not from ``calibrate``; ``damping`` is not a number of
        at least 0, or so small that :math:`H` is singular; when used, as
        :func:`activation`.

    References:
      Hassibi and Stork, `Second order derivatives for network pruning: Optimal Brain
      Surgeon <https://papers.nips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html>`_,
      1992, equation 5; Frantar and Alistarh, `SparseGPT
      <https://arxiv.org/abs/2301.00774>`_, 2023, section 3.

    The first two inputs are nearly the same, so either can stand for the other:

    >>> import jax.numpy as jnp, jprune
    >>> def fn(w, x):
    ...     return x @ w
    >>> w = jnp.array([[3.], [2.], [1.]])
    >>> x = jnp.array([[1., 1., 0.], [1., 1.1, 0.], [0., 0., 1.]])
    >>> stats = jprune.calibrate(fn, w, [(x,)])
    >>> criterion = jprune.criteria.curvature(stats)
    >>> jprune.find_masks(w, 1 / 3, criterion=criterion)[:, 0]
    Array([ True, False,  True], dtype=bool)
    """
    more = check_not_negative("`curvature(damping=...)`", damping)

    def values(path: str, inputs: Moments, biased: bool) -> jax.Array:
        found = _left(inputs, more, centred=biased)
        if not is_traced(found) and not bool(jnp.isfinite(found).all()):
            raise ValueError(
                f"`curvature(stats, damping={damping})`: the Gram of "
                f"{path!r} is singular; a larger `damping` or more rows help."
            )
        result: jax.Array = found
        return result

    return _curvature(inputs_of("curvature", stats, values))


@recorded
def _curvature(inputs: Inputs) -> Criterion:
    return by_inputs("curvature(stats)", inputs, jnp.square, lambda x: x)


@partial(jax.jit, static_argnames="centred")
def _left(inputs: Moments, damping: Any, *, centred: bool) -> jax.Array:
    """``1 / [H^-1]_ii``, 0 for inputs that never were."""
    gram, size = inputs.gram, inputs.gram.shape[-1]
    power = jnp.diagonal(gram, axis1=-2, axis2=-1)
    if centred:
        count = jnp.maximum(inputs.count, 1)[..., None, None]
        gram -= inputs.sum[..., :, None] * inputs.sum[..., None, :] / count
    # Of an input that never varied the difference leaves rounding.
    least = 64 * jnp.finfo(gram.dtype).eps * power
    on = jnp.diagonal(gram, axis1=-2, axis2=-1)
    alive = on > least
    gram = jnp.where(alive[..., :, None] & alive[..., None, :], gram, 0.0)
    mean = jnp.mean(jnp.where(alive, on, 0.0), -1, keepdims=True)
    more = jnp.where(alive, damping * mean, 1.0)
    lower = jnp.linalg.cholesky(
        gram + more[..., None] * jnp.eye(size, dtype=gram.dtype)
    )
    eye = jnp.broadcast_to(jnp.eye(size, dtype=gram.dtype), gram.shape)
    half = lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    return jnp.where(alive, 1 / jnp.sum(half**2, -2), 0.0)
