"""The same sparsity for every pool."""

from typing import Any

from jprune._core import counts as _counts
from jprune._core.calls import recorded
from jprune.allocations._base import Allocation, Pools


@recorded
def uniform() -> Allocation:
    """Removes the same fraction of every pool, rounded for each pool.

    Returns:
      An :class:`Allocation`, for every structure.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.array([[1., 2.]]), "b": jnp.array([[30., 40.]])}
    >>> jprune.find_masks(params, .5, allocation=jprune.allocations.uniform())
    {'a': Array([[False,  True]], dtype=bool), 'b': Array([[False,  True]], dtype=bool)}
    """

    def counts(pools: Pools, sparsity: Any) -> Any:
        kept = (pools.kept or _counts.left_of)(sparsity, pools.sizes)
        if isinstance(kept, _counts.Count):
            kept = _counts.to_int32(kept)
        return kept

    return Allocation(counts)
