"""Units in order, so that how many stay says which."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.costs import Polynomial
from jprune._core.seeds import key_maker
from jprune._core.trees import is_hole, leaves_with_path, unique_names
from jprune._core.typing import Masks, Tree, Where
from jprune._core.where import check_where
from jprune.allocations import Pools, uniform
from jprune.choosing.families import Method, method_of, unit_scores
from jprune.choosing.targets import pools_of
from jprune.compaction import trace_units
from jprune.compaction.costs import COSTS
from jprune.criteria import Criterion, gauss_newton
from jprune.jaxprs.products import multiply_adds_of
from jprune.selection.ranking import places
from jprune.structures import Structure


class Ordered(NamedTuple):
    """The units of each pool, the best at place 0: a configuration is a count."""

    method: Method
    chosen: Tree  # the parameters that are pruned, holes elsewhere
    places: list[jax.Array]  # int32, like the units of each pool
    form: Any  # of the tree of units
    pools: Pools

    def masks(
        self, chosen: Tree, where: list[jax.Array], counts: jax.Array
    ) -> Masks:
        """The masks that keep so many of each pool; counts may be traced."""
        marks = [x < counts[i] for i, x in enumerate(where)]
        units = jax.tree.unflatten(self.form, marks)
        return self.method.structure.to_masks(units, chosen)


def order(
    call: str,
    fn: Any,
    params: Tree,
    args: tuple[Any, ...],
    structure: Structure,
    where: Where,
    criterion: Criterion | None,
    seed: Any = 0,
) -> Ordered:
    """Scores units once, and sorts them.

    Raises:
      ValueError: A structure or criterion that can't be searched with.
    """
    if criterion is None:
        criterion = gauss_newton(fn, params, args, key=seed)
    method = method_of(call, criterion, structure, uniform())
    if structure.few_units:
        raise ValueError(
            f"`{call}(structure=...)`: `{structure}` keeps the same number in all "
            "of its pools, so that there is nothing to search for; "
            "`unstructured()` and `units(graph)` can be searched."
        )
    if criterion.reads_grads:
        raise ValueError(
            f"`{call}(criterion=...)`: `{criterion}` reads gradients of a "
            "training; `gauss_newton(fn, params, batch)` needs none."
        )
    check_where(call, where)
    chosen = method.choose(where, params)
    state = criterion.init(chosen)
    key = key_maker(call, seed)()
    scores, form = unit_scores(method, chosen, state, None, key)
    ranked = places(scores, None, joint=False)
    return Ordered(method, chosen, ranked, form, pools_of(method, chosen))


def costs_of(
    fn: Any, params: Tree, args: tuple[Any, ...], ordered: Ordered
) -> dict[str, Polynomial]:
    """What pools cost, by name, as :func:`jprune.report.cost` counts it."""
    structure = ordered.method.structure
    if structure.costs is not None:
        found = {name: structure.costs(name) for name in COSTS}
    else:
        found = _of_weights(fn, params, args, ordered.chosen)
    return {name: cost for name, cost in found.items() if cost.whole}


def _of_weights(
    fn: Any, params: Tree, args: tuple[Any, ...], chosen: Tree
) -> dict[str, Polynomial]:
    """Where weights alone go: what is masked saves itself and nothing else."""
    leaves = leaves_with_path(chosen)
    names = unique_names([path for path, _ in leaves])
    picked = [
        (name, x)
        for name, (_, x) in zip(names, leaves, strict=True)
        if not is_hole(x)
    ]
    sizes = np.array([np.size(x) for _, x in picked], float)
    widths = np.array([jnp.result_type(x).itemsize for _, x in picked], float)
    products = multiply_adds_of(fn, params, *args)
    graph = trace_units(fn, params, *args)
    stored = [
        (np.prod(x.shape, dtype=float), x.dtype.itemsize) for x in graph.leaves
    ]
    each = {
        "parameters": (sizes, sum(n for n, _ in stored)),
        "multiply_adds": (
            np.array([products.get(name, 0) for name, _ in picked], float),
            sum(product.multiply_adds for product in graph.products),
        ),
        "bytes": (sizes * widths, sum(n * width for n, width in stored)),
    }
    return {
        name: _linear(amounts, whole) for name, (amounts, whole) in each.items()
    }


def _linear(amounts: np.ndarray, whole: float) -> Polynomial:
    """Each pool for itself, and what stays in any case."""
    rest = max(whole - amounts.sum(), 0.0)
    pools = np.arange(len(amounts) + 1, dtype=np.int32)
    return Polynomial(np.append(amounts, rest), pools[:, None])
