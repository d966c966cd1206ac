"""The size of a weight times that of its input."""

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune._core.stats import Moments, Stats
from jprune.criteria._base import Criterion
from jprune.criteria._inputs import Inputs, by_inputs, inputs_of


def activation(stats: Stats) -> Criterion:
    r"""Keeps the weights that add most to their output: :math:`|w_{ij}| \|x_i\|_2`.

    :math:`\|x_i\|_2` is the norm of the weight's input over all rows that
    ``calibrate`` saw. If a weight is used in several products, the squares of these
    norms are added. With ``structure=fan_in()`` this is Wanda. With
    :func:`jprune.units` the score of a unit is :math:`\|a\|_2 \|W_{out}\|_2`: the
    root of the sum of squares over the rows of kernels that read the unit.

    Args:
      stats: What :func:`jprune.calibrate` returned. Its parameters are matched with
        the pruned ones by the ends of their paths, so statistics of a Linen
        module's variables work for ``variables["params"]``.

    Returns:
      A :class:`Criterion`. Its state holds the norms, in float32 at least, like the
      parameters. An input that was never active scores 0. Of ``stats`` it keeps
      only one number for each input.

    Raises:
      ValueError: ``stats`` is not from ``calibrate``; when used, if a selected
        parameter has no statistics or another shape, or no parameter that reads a
        pool of units has statistics.

    References:
      Sun et al., `A Simple and Effective Pruning Approach for Large Language Models
      <https://arxiv.org/abs/2306.11695>`_, 2023, equation 1.

    >>> import jax.numpy as jnp, jprune
    >>> def fn(w, x):
    ...     return x @ w
    >>> w = jnp.array([[1., -4.], [3., -2.]])
    >>> stats = jprune.calibrate(fn, w, [(jnp.array([[6., 1.]]),)])
    >>> jprune.find_masks(w, .5, criterion=jprune.criteria.activation(stats))
    Array([[ True,  True],
           [False, False]], dtype=bool)
    """
    return _activation(inputs_of("activation", stats, _powers))


@recorded
def _activation(inputs: Inputs) -> Criterion:
    return by_inputs("activation(stats)", inputs, jnp.abs, jnp.sqrt)


def _powers(path: str, inputs: Moments, biased: bool) -> jax.Array:
    """Sums of squares."""
    del path, biased  # what a bias takes up is active, too
    result: jax.Array = jnp.diagonal(inputs.gram, axis1=-2, axis2=-1)
    return result
