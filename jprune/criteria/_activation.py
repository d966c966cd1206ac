"""The size of a weight times that of its input."""

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune._core.stats import Moments, Stats
from jprune.criteria._base import Criterion
from jprune.criteria._inputs import Inputs, by_inputs, inputs_of


def activation(stats: Stats) -> Criterion:
    r"""Keeps the weights that add most to their output: :math:`|w_{ij}| \|x_i\|_2`.

    :math:`\|x_i\|_2` is the norm of the input of the weight, over all rows that
    were seen. Of a weight that stands in several products the squares of these
    add. With ``structure=fan_in()`` this is Wanda. With :func:`jprune.units` the
    score of a unit is that of what reads it, :math:`\|a\|_2 \|W_{out}\|_2`: the
    root of the sum of squares over the rows that are multiplied with it.

    Args:
      stats: What :func:`jprune.calibrate` returned. Its parameters and those that
        are pruned are matched by the ends of their paths, so statistics of a Linen
        module's variables serve for ``variables["params"]``.

    Returns:
      A :class:`Criterion`; its state are the norms, in float32 at least, like the
      parameters. An input that was never active scores 0. It keeps what it needs
      of ``stats``: one number for each input.

    Raises:
      ValueError: ``stats`` are none; when used, if a selected parameter, or all that
        reads a pool of units, has no statistics, or a parameter has another shape.

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
