"""A table of what masks leave."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.checks import is_traced
from jprune._core.tables import shape_name, table
from jprune._core.trees import (
    is_array,
    is_floating,
    is_hole,
    is_nonzero,
    leaves_with_path,
    unique_names,
)
from jprune._core.typing import Masks, Tree
from jprune._core.where import PRUNED, by_default
from jprune.masks.align import align_masks


class LeafSummary(NamedTuple):
    """The counts of one leaf of the parameters."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    weights: int  # entries
    kept: int  # entries that the masks keep; all where there is no mask
    zeros: int  # entries that are exactly 0
    masked: bool  # whether there is a mask, given or read


class Summary(NamedTuple):
    """What :func:`summarize` returns; prints as a table."""

    leaves: tuple[LeafSummary, ...]

    @property
    def weights(self) -> int:
        """The number of entries of all leaves."""
        return sum(leaf.weights for leaf in self.leaves)

    @property
    def kept(self) -> int:
        """The number of entries that the masks keep; all where there is no mask."""
        return sum(leaf.kept for leaf in self.leaves)

    @property
    def zeros(self) -> int:
        """The number of entries that are 0."""
        return sum(leaf.zeros for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """The fraction of the masked leaves' weights that is pruned."""
        masked = [leaf for leaf in self.leaves if leaf.masked]
        weights = sum(leaf.weights for leaf in masked)
        return (
            1 - sum(leaf.kept for leaf in masked) / weights if weights else 0.0
        )

    def __str__(self) -> str:
        head = (
            "leaf",
            "shape",
            "dtype",
            "weights",
            "kept",
            "sparsity",
            "zeros",
        )
        rows = [head]
        for leaf in self.leaves:
            sparsity = 1 - leaf.kept / leaf.weights if leaf.weights else 0.0
            rows.append(
                (
                    leaf.path,
                    shape_name(leaf.shape),
                    leaf.dtype,
                    f"{leaf.weights:,}",
                    f"{leaf.kept:,}",
                    f"{sparsity:.1%}" if leaf.masked else "-",
                    f"{leaf.zeros:,}",
                )
            )
        rows.append(
            (
                "total",
                "",
                "",
                f"{self.weights:,}",
                f"{self.kept:,}",
                f"{self.sparsity:.1%}",
                f"{self.zeros:,}",
            )
        )
        return table(rows, left=3)


def summarize(params: Tree, masks: Masks | None = None) -> Summary:
    """Counts weights, kept weights and zeros, leaf by leaf.

    Args:
      params: A tree of concrete parameters.
      masks: Masks for it, as for :func:`apply_masks`. None: the masks that
        :func:`read_masks` finds, which prune what is exactly 0 in the leaves that
        are pruned by default.

    Returns:
      A :class:`Summary`, which prints as a table.

    Raises:
      ValueError: ``masks`` does not fit ``params``, or they are traced.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"kernel": jnp.array([[3., 0.], [1., 2.]]), "bias": jnp.ones(2)}
    >>> print(jprune.summarize(params, jprune.find_masks(params, .5)))
    leaf    shape  dtype    weights  kept  sparsity  zeros
    ------------------------------------------------------
    bias    2      float32        2     2         -      0
    kernel  2x2    float32        4     2     50.0%      1
    ------------------------------------------------------
    total                         6     4     50.0%      1
    """
    call = "`summarize(params, masks)`"
    leaves = leaves_with_path(params)
    names = unique_names([path for path, _ in leaves])
    aligned = align_masks(call, params, masks)
    pruned = by_default(leaves, PRUNED)
    rows = []
    for name, (_, leaf), mask, meant in zip(
        names, leaves, aligned, pruned, strict=True
    ):
        if is_hole(leaf) or not is_array(leaf):
            continue
        if is_traced(leaf) or is_traced(mask):
            raise ValueError(f"{call}: {name!r} is traced.")
        size, zeros = int(np.size(leaf)), _zeros(leaf)
        read = masks is None and meant
        kept = size - zeros if read else size
        if mask is not None:
            kept = _true(mask, np.shape(leaf))
        rows.append(
            LeafSummary(
                path=name,
                shape=tuple(np.shape(leaf)),
                dtype=str(getattr(leaf, "dtype", type(leaf).__name__)),
                weights=size,
                kept=kept,
                zeros=zeros,
                masked=read or mask is not None,
            )
        )
    return Summary(tuple(rows))


def _zeros(leaf: Any) -> int:
    """How many entries are 0; of what holds no numbers, keys say, none."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        return 0
    marks = is_nonzero(leaf) if is_floating(leaf) else leaf
    return int(np.size(leaf)) - int(jnp.count_nonzero(marks))


def _true(mask: Any, shape: tuple[int, ...]) -> int:
    """How many entries of a mask, once it is broadcast, are True."""
    if isinstance(mask, jax.Array) and not mask.is_fully_addressable:
        return int(jnp.count_nonzero(jnp.broadcast_to(mask, shape)))
    return int(np.count_nonzero(np.broadcast_to(mask, shape)))
