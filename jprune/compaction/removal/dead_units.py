"""Which units are dead in given parameters."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from jprune.compaction.graph.constants import Array, Stored
from jprune.compaction.graph.pools import pools_of
from jprune.compaction.graph.trace import Trace, along
from jprune.compaction.graph.walk import Site, Walk
from jprune.compaction.removal.plan import Left


class Dead(NamedTuple):
    """The units that may go, and what was seen in finding them."""

    units: Array  # [units] bool
    masked: list[Stored]  # the parameters before
    arrays: list[Stored]  # with 0 for all that is dead
    folded: set[int]  # which of them took constants in
    multiply_adds: tuple[int, int]  # of the masked program, as a walk has them
    sums: list[Site]  # to which something is added when all that is dead is 0


def find_dead(trace: Trace, masked: list[Stored]) -> Dead:
    """Marks the units that may go, until no more die with them.

    Args:
      trace: The traced program, with its units numbered.
      masked: The parameters, masked.
    """
    arrays = list(masked)
    folded: set[int] = set()
    dead = np.zeros(trace.count, bool)
    walk = trace.walk([*arrays])
    products = walk.multiply_adds()
    while True:
        alive = np.zeros(trace.count, bool)
        for site in walk.sums():
            fold = _can_fold(site, walk, arrays)
            adds = site.adds & ~np.asarray(site.fixed) if fold else site.adds
            alive[trace.touched(site, adds)] = True
        more = _even(trace, ~alive | dead)
        if np.array_equal(more, dead):
            return Dead(dead, masked, arrays, folded, products, walk.sums())
        new, dead = more & ~dead, more
        for site in walk.sums():
            if _can_fold(site, walk, arrays):
                folded |= _fold(trace, site, new, arrays)
        for i, x in enumerate(arrays):
            gone = along(trace.gone(i, new), len(x.shape))
            arrays[i] = x.without(gone) if gone else x
        walk = trace.walk([*arrays])


def left_over(trace: Trace, dead: Dead, removed: Array) -> list[Left]:
    """What is 0 in a parameter and stays, with the first reason of each.

    Args:
      trace: The traced program, with its units numbered.
      dead: What may go.
      removed: ``[units]`` bool, what goes.
    """
    why: dict[int, str] = {}
    for site in dead.sums:
        for unit in trace.touched(site, site.adds).tolist():
            why.setdefault(unit, f"{site.why}: it adds to a sum")

    def reason(i: int, axis: int, place: Any) -> str:
        units = trace.units[i][axis][place]
        for unit in units[units >= 0].tolist():
            return why.get(unit, "as many stay in all layers, and one in each")
        for root in trace.ids.resolve(trace.axes[i][axis])[place].tolist():
            if trace.frozen.get(root):
                return trace.frozen[root]
        return "it is no unit"

    found = []
    for i, (leaf, x) in enumerate(zip(trace.leaves, dead.masked, strict=True)):
        if len(leaf.shape) < 2 or not leaf.floating or x.zero.all():
            continue
        for axis, gone in enumerate(trace.gone(i, removed)):
            rest = tuple(k for k in range(len(leaf.shape)) if k != axis)
            if gone.ndim == 2:  # of each layer by itself
                rest = tuple(k for k in rest if k)
            stays = x.zero.all(rest) & ~gone
            places = map(tuple, np.argwhere(stays).tolist())
            reasons = Counter(reason(i, axis, place) for place in places)
            found += [Left(leaf.path, axis, n, w) for w, n in reasons.items()]
    return found


def _can_fold(site: Site, walk: Walk, arrays: list[Stored]) -> bool:
    """Whether what a sum adds goes to a bias that is used for nothing else."""
    if site.bias is None or site.terms is None or site.uses != 1:
        return False
    i, lead, shape = site.bias
    uses = sum(
        n
        for (leaf, at), n in walk.uses.items()
        if leaf == i and (at == lead or not at or not lead)
    )
    bias = arrays[i].map(lambda x: x[lead]).flags
    added = site.terms(np.zeros(len(site.ids), bool)).shape
    try:
        fits = np.broadcast_shapes(added, shape) == shape
    except ValueError:
        return False
    return uses == 1 and fits and int(np.prod(shape)) == bias.size


def _fold(
    trace: Trace, site: Site, new: Array, arrays: list[Stored]
) -> set[int]:
    """Adds the constants of dead units to the bias behind them."""
    units = trace.units_of(site.ids)
    gone = np.append(new, False)[units].any(-1) & site.adds
    if not gone.any():
        return set()
    i, lead, shape = site.bias  # type: ignore[misc]
    terms = site.terms(gone)  # type: ignore[misc]
    biases = np.array(arrays[i].value)
    bias = biases[lead].astype(np.float64)
    total = bias + np.broadcast_to(terms, shape).reshape(bias.shape)
    biases[lead] = total.astype(biases.dtype)
    arrays[i] = Stored(biases, (), biases.dtype)
    return {i}


def _even(trace: Trace, dead: Array) -> Array:
    """Fewer dead units: no axis is emptied, layers of a stack stay alike."""
    dead = dead.copy()
    for pool in pools_of(trace):
        flags = dead[pool.units]
        flags[:, 0] &= ~flags.all(1)
        lost = flags.sum(1).min(initial=flags.shape[1])
        flags &= np.cumsum(flags, 1) <= lost
        dead[pool.units] = flags
    while True:  # stacks of several kinds of units
        before = dead.copy()
        for i in range(len(trace.leaves)):
            for units, gone in zip(
                trace.units[i], trace.gone(i, dead), strict=True
            ):
                if units.ndim == 3 and len(set(gone.sum(1).tolist())) > 1:
                    dead[units[units >= 0]] = False
        if np.array_equal(before, dead):
            return dead
