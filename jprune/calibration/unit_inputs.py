"""Which rows of which products are the units of a structure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jprune._core.stats import Site
from jprune._core.views import look
from jprune.structures import Members


class Consumer(NamedTuple):
    """A product that sums over the units of a pool, in one layer."""

    site: int
    layers: tuple[int, ...]
    units: np.ndarray  # int [G, K], -1: of no unit of the pool


class Group(NamedTuple):
    """Units that can be compared, and the products that sum over them."""

    pool: int
    row: int  # which of the pool's layers
    units: np.ndarray  # int [n]
    consumers: tuple[Consumer, ...]


def groups_of(
    members: Members,
    sites: Sequence[Site],
    leaves: Sequence[tuple[Any, Any]],
    places: dict[str, int],
) -> list[Group]:
    """The units of every pool and layer, with the products that sum over them."""
    found: dict[tuple[int, int], list[Consumer]] = {}
    owner = {
        int(unit): (p, row)
        for p, pool in enumerate(members.pools)
        for row, units in enumerate(pool)
        for unit in units
    }
    for number, site in enumerate(sites):
        path, x = leaves[places[site.path]]
        numbers = members.of(path, x)
        if numbers is None:
            continue
        for axis, units in enumerate(numbers):
            for factor in range(units.shape[-1]):
                one = units[..., factor]
                if (one < 0).all():
                    continue
                shape = [1] * np.ndim(x)
                shape[axis] = one.shape[-1]
                if one.ndim == 2:
                    shape[0] = len(one)
                whole = np.broadcast_to(one.reshape(shape), np.shape(x))
                seen = np.asarray(look(site.steps, jnp.asarray(whole)))
                if (seen != seen[..., :1]).any():
                    continue  # units of the outputs
                rows = seen[..., 0]  # [..., G, K]
                for layers in np.ndindex(*rows.shape[:-2]):
                    here = rows[layers]
                    for key in {
                        owner[int(u)] for u in np.unique(here[here >= 0])
                    }:
                        own = members.pools[key[0]][key[1]]
                        mine = np.where(np.isin(here, own), here, -1)
                        found.setdefault(key, []).append(
                            Consumer(number, layers, mine)
                        )
    return [
        Group(p, row, units, tuple(found.get((p, row), ())))
        for p, pool in enumerate(members.pools)
        for row, units in enumerate(pool)
    ]


def rows_of(units: np.ndarray) -> np.ndarray | None:
    """Int [G, U, B], the rows of each unit, from the units [G, K] of rows.

    None: not all products have equally many units, or units equally many rows.
    """
    found = []
    for one in units:
        mine = np.unique(one[one >= 0])
        where = [np.flatnonzero(one == unit) for unit in mine]
        if not where or len({len(x) for x in where}) != 1:
            return None
        found.append(np.stack(where))
    if len({x.shape for x in found}) != 1:
        return None
    every = np.concatenate([np.unique(one[one >= 0]) for one in units])
    # A unit that several products sum over is one choice for all of them.
    alone = len(np.unique(every)) == len(every)
    return np.stack(found) if alone else None
