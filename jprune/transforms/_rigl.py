"""RigL: connections grow where the gradient is largest."""

import jax
import optax

from jprune._core.calls import recorded
from jprune._core.typing import Scalar, Sparsity, Where
from jprune.allocations import Allocation
from jprune.criteria import Criterion, gradient, magnitude
from jprune.structures import Structure, unstructured
from jprune.transforms._rewire import rewire


@recorded
def rigl(
    inner: optax.GradientTransformation,
    sparsity: Scalar,
    *,
    drop: Criterion = magnitude(),
    fraction: Sparsity | None = None,
    every: int = 100,
    start: int = 0,
    stop: int | None = None,
    replace_step: bool = False,
    structure: Structure = unstructured(),
    allocation: Allocation | None = None,
    where: Where = None,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains with RigL: :func:`rewire` that grows where gradients are largest.

    The gradients are the dense ones, those of pruned weights included.

    Args:
      inner: The whole optimizer.
      sparsity: The fraction of units that is pruned.
      drop, fraction, every, start, stop: As in :func:`rewire`; ``stop`` or
        ``fraction`` is needed.
      replace_step, structure, allocation, where, key: As in :func:`rewire`.

    Returns:
      ``rewire(inner, sparsity, grow=gradient(), ...)``.

    References:
      Evci et al., `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
      2020. The published protocol is ``replace_step=True``.

    >>> import optax, jprune
    >>> tx = jprune.rigl(optax.adam(1e-3), .9, every=100, stop=25_000)
    """
    return rewire(
        inner,
        sparsity,
        grow=gradient(),
        drop=drop,
        fraction=fraction,
        every=every,
        start=start,
        stop=stop,
        replace_step=replace_step,
        structure=structure,
        allocation=allocation,
        where=where,
        key=key,
    )
