"""SET: connections grow at random."""

import jax
import optax

from jprune._core.calls import recorded
from jprune._core.typing import Scalar, Sparsity, Where
from jprune.allocations import Allocation
from jprune.criteria import Criterion, magnitude, random
from jprune.structures import Structure, unstructured
from jprune.transforms._rewire import rewire


@recorded
def sparse_evolution(
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
    """Trains with SET, sparse evolution: :func:`rewire` that grows at random.

    Args:
      inner: The whole optimizer.
      sparsity: The fraction of units that is pruned.
      drop, fraction, every, start, stop: As in :func:`rewire`; ``stop`` or
        ``fraction`` is needed. ``start=every`` is closer to the paper, which
        trains for an epoch before it rewires: at step 0 nothing is learned yet,
        and connections that grow there take the place of others and begin at 0.
      replace_step, structure, allocation, where, key: As in :func:`rewire`.

    Returns:
      ``rewire(inner, sparsity, grow=random(), ...)``.

    References:
      Mocanu et al., `Scalable training of artificial neural networks with
      adaptive sparse connectivity <https://arxiv.org/abs/1707.04780>`_, 2018,
      algorithm 2. Here the smallest magnitudes are dropped, whatever their sign.

    >>> import optax, jprune
    >>> tx = jprune.sparse_evolution(optax.adam(1e-3), .9, fraction=.3, every=100)
    """
    return rewire(
        inner,
        sparsity,
        grow=random(),
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
