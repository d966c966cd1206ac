"""What decides which weights stay: a criterion, a structure, an allocation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.checks import check_member
from jprune._core.layout import on_mesh
from jprune._core.paths import matched_to
from jprune._core.trees import (
    at_least_float32,
    concatenate_many,
    layer_names,
)
from jprune._core.typing import Masks, Tree, Where
from jprune._core.where import PRUNED, choose
from jprune.allocations import Allocation
from jprune.choosing.default import default_allocation
from jprune.criteria import Criterion
from jprune.selection.ranking import count_alike
from jprune.selection.select import count_kept
from jprune.structures import Structure


class Method(NamedTuple):
    """What decides which weights stay, and how callers are named in errors."""

    call: str
    criterion: Criterion
    structure: Structure
    allocation: Allocation
    role: str = "criterion"  # the criterion's name in the call

    def choose(self, where: Where, params: Tree) -> Tree:
        """``params`` with holes in place of what is not pruned."""
        if self.structure.where is not None:
            if where is not None:
                raise ValueError(
                    f"`{self.call}(where=..., structure=...)`: `{self.structure}` "
                    "says itself which leaves; `units(graph, where=...)` selects "
                    "pools."
                )
            where = self.structure.where
        return choose(self.call, where, params, PRUNED)


def method_of(
    call: str,
    criterion: Criterion,
    structure: Structure,
    allocation: Allocation | None,
    role: str = "criterion",
) -> Method:
    """What decides, with the default in place of an allocation that is None.

    Raises:
      ValueError: An uncalled factory, or what does not go together.
    """
    check_member(call, role, criterion, Criterion)
    check_member(call, "structure", structure, Structure)
    if allocation is None:
        allocation = default_allocation(structure)
    check_member(call, "allocation", allocation, Allocation)
    if allocation.joint and structure.kept is not None:
        raise ValueError(
            f"`{call}(structure=..., allocation=...)`: `{structure}` keeps the "
            f"same number in all pools, which one ranking, `{allocation}`, "
            "can't; `uniform` and `erdos_renyi` can."
        )
    return Method(call, criterion, structure, allocation, role)


def unit_scores(
    method: Method, params: Tree, state: Any, grads: Any, key: Any
) -> tuple[list[jax.Array], Any]:
    """Scores of units, ready to be ranked, and the structure of their tree."""
    members, of_units = method.structure.members, method.criterion.of_units
    both = method.criterion.pooled, method.allocation.normalize
    changes = [change for change in both if change is not None]
    if members is not None and of_units is not None:
        units = lax.stop_gradient(of_units(params, state, members))
    else:
        scores = method.criterion.score(params, state, grads, key)
        call = f"`{method.call}({method.role}=...)`"
        # Selection has no gradient: nothing of it is to be differentiated.
        scores = lax.stop_gradient(matched_to(params, scores, call, "scores"))
        # Sums of 16-bit scores overflow.
        units = _pooled(method, jax.tree.map(at_least_float32, scores))
        if method.criterion.exact and method.structure.moves and not changes:
            units = jax.tree.map(_as_precise, params, units)
    for change in changes:
        units = change(units)
    return jax.tree.flatten(units)


def _as_precise(p: Any, score: jax.Array) -> jax.Array:
    """The score of a 16-bit parameter in 16 bits, any other as it is.

    It comes last, since on a CPU moving 16-bit floats copies them.
    """
    dtype = jnp.result_type(p)
    return score.astype(dtype) if dtype.itemsize == 2 else score


def _pooled(method: Method, scores: Tree) -> Tree:
    """Scores of units; where signs count, no norm may lose them."""

    def part(sign: int) -> Tree:
        return method.structure.to_units(
            jax.tree.map(lambda s: jnp.maximum(sign * s, 0), scores)
        )

    if method.criterion.signed and method.structure.pooling in ("l2", "l1"):
        return jax.tree.map(jnp.subtract, part(1), part(-1))
    return method.structure.to_units(scores)


class Kept(NamedTuple):
    """The units that masks in force keep."""

    units: list[jax.Array]  # bool, [pools, ...] for each leaf
    counts: jax.Array  # int32, see :func:`jprune.selection.select.count_kept`


def kept_units(
    method: Method, masks: Masks, counts: jax.Array | None = None
) -> Kept:
    """Units of which any weight is kept, and how many unless it is known."""
    structure, joint = method.structure, method.allocation.joint
    if structure.moves:
        units, form = jax.tree.flatten(structure.to_units(masks))
    else:
        ones = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
        found, form = jax.tree.flatten(structure.to_units(ones))
        units = [x > 0 for x in found]
    if counts is not None:
        return Kept(units, counts)
    if not units:
        return Kept(units, jnp.zeros(0, np.int32))
    if structure.few_units:
        return Kept(
            units, concatenate_many([count_alike(x)[None] for x in units])
        )
    names = layer_names(form) if any(map(on_mesh, units)) else None
    return Kept(units, count_kept(units, joint=joint, names=names))
