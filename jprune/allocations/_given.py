"""Sparsities that someone else decided."""

import re
from collections.abc import Mapping
from typing import Any

from jprune._core import counts as _counts
from jprune._core.calls import recorded
from jprune._core.checks import check_number
from jprune._core.describe import describe
from jprune.allocations._base import Allocation, Pools


@recorded
def given(shares: Mapping[str, float]) -> Allocation:
    """Removes the shares that you give, by leaf or pool of units.

    A pool of ``n`` units loses ``round(sparsity * share * n)`` of them. With
    ``sparsity=1`` shares are the sparsities of the leaves; a schedule from 0 to 1
    leads to them gradually.

    Args:
      shares: A dict from regular expressions to shares in [0, 1]. An expression is
        searched in the paths of leaves, and with :func:`jprune.units` in each
        ``path[axis]`` that a pool's units are parts of. The first one that matches
        is used; a leaf that none matches keeps all its units. Static.

    Returns:
      An :class:`Allocation`, for every structure.

    Raises:
      ValueError: Here if a key is not a regular expression or a share not a number
        in [0, 1]; when used, if an expression matches nothing.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.arange(8.).reshape(2, 4), "b": jnp.arange(8.).reshape(2, 4)}
    >>> given = jprune.allocations.given({"a": .75, ".": .25})
    >>> masks = jprune.find_masks(params, 1., allocation=given)
    >>> int(masks["a"].sum()), int(masks["b"].sum())
    (2, 6)
    """
    if not isinstance(shares, Mapping) or not shares:
        raise ValueError(
            "`given(shares)` must be a dict from regular expressions to shares, "
            f'as in `given({{"Dense_0": .8, ".": .5}})`, got {describe(shares)}.'
        )
    rules = []
    for name, share in shares.items():
        try:
            pattern = re.compile(name)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`given({{{name!r}: ...}})` is no regular expression: {error}."
            ) from None
        number = check_number(f"`given({{{name!r}: ...}})`", share)
        if not isinstance(number, float) or not 0.0 <= number <= 1.0:
            raise ValueError(
                f"`given({{{name!r}: ...}})` must be a number in [0, 1], got "
                f"{describe(share)}."
            )
        rules.append((pattern, number))

    def sparsities(pools: Pools, sparsity: Any) -> list[Any]:
        _check_matches([p.pattern for p, _ in rules], pools)
        return [sparsity * _share(rules, names) for names in pools.names]

    def counts(pools: Pools, sparsity: Any) -> Any:
        kept = pools.kept or _counts.left_of
        pairs = zip(sparsities(pools, sparsity), pools.sizes, strict=True)
        return [_int32(kept(s, size)) for s, size in pairs]

    return Allocation(counts, sparsities=sparsities)


def _share(rules: Any, names: tuple[str, ...]) -> float:
    """That of the first expression that is found in one of the names."""
    return next(
        (n for p, n in rules if any(map(p.search, names))),
        0.0,
    )


def _check_matches(patterns: list[str], pools: Pools) -> None:
    for pattern in patterns:
        found = any(re.search(pattern, x) for xs in pools.names for x in xs)
        if pools.names and not found:
            raise ValueError(
                f"`given({{{pattern!r}: ...}})` matches none of: "
                f"{', '.join(xs[0] for xs in pools.names)}."
            )


def _int32(kept: Any) -> Any:
    return _counts.to_int32(kept) if isinstance(kept, _counts.Count) else kept
