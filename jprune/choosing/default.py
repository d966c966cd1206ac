"""How much where, unless the caller says it."""

from typing import Any

from jprune.allocations import Allocation, Pools, erdos_renyi, uniform
from jprune.structures import Structure

# Axes of matrices, and of kernels of convolutions in two and three dimensions.
_AXES = (2, 4, 5)


def default_allocation(structure: Structure) -> Allocation:
    """``allocation=None``: Erdos-Renyi where the dimensions of layers are known.

    So they are if the structure knows inputs and outputs, or every layer has two axes
    or is a convolution. On three axes a stack or heads would be taken for inputs; there,
    for pools of few units, and for those that span leaves, it is uniform.
    """
    if structure.few_units:
        return uniform()
    by_shape, alike = erdos_renyi(), uniform()

    def counts(pools: Pools, sparsity: Any) -> Any:
        known = pools.shapes is not None and (
            structure.layer is not None
            or all(len(shape) in _AXES for shape in pools.shapes)
        )
        return (by_shape if known else alike).counts(pools, sparsity)

    return Allocation(counts)
