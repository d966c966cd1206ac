"""What the criteria that know inputs share: a factor for each weight, by its row."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.describe import describe
from jprune._core.ends import ends, partner
from jprune._core.layout import laid_out_like
from jprune._core.members import Members, Numbers, line_of
from jprune._core.stats import Moments, Site, Stats
from jprune._core.trees import (
    at_least_float32,
    is_hole,
    leaves_with_path,
    map_with_path,
    path_name,
    wide_dtype,
)
from jprune._core.typing import Tree
from jprune.criteria._base import Criterion, product


class Rows(NamedTuple):
    """A product, and what the square of a weight counts by its row."""

    site: Site
    values: jax.Array  # [..., G, K]

    def weights(self, x: Any) -> jax.Array:
        """The values where weights of a leaf are, and 0 where it is not seen."""
        zeros = jnp.zeros(jnp.shape(x), self.values.dtype)
        seen = jax.eval_shape(self.site.matrix, zeros).shape
        values = jnp.broadcast_to(self.values[..., None], seen)
        result: jax.Array = self.site.write(zeros, values)
        return result


class Inputs(NamedTuple):
    """What a criterion keeps of statistics."""

    rows: tuple[Rows, ...]
    missed: tuple[tuple[str, str], ...]  # as in `Stats`


def inputs_of(
    call: str, stats: Any, values: Callable[[str, Moments, bool], jax.Array]
) -> Inputs:
    """The rows of all products: where weights are the same, inputs add.

    Args:
      call: How the caller is named in errors.
      stats: What ``calibrate`` returned.
      values: From the path of a parameter, its inputs, and whether all outputs have
        a bias, to what rows count, ``[..., G, K]``. Called once for equal inputs.
    """
    if not isinstance(stats, Stats):
        raise ValueError(
            f"`{call}(stats)` must be what `jprune.calibrate(fn, params, "
            f"batches)` returned, got {describe(stats)}."
        )
    alike: dict[Any, list[Site]] = {}
    for site in stats.sites:
        alike.setdefault((site.path, site.steps), []).append(site)
    known: dict[Any, jax.Array] = {}
    rows = []
    for sites in alike.values():
        key = (
            tuple(sorted(site.moments for site in sites)),
            all(site.bias is not None for site in sites),
        )
        if key not in known:
            every = [stats.moments[number] for number in key[0]]
            total = jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *every)
            known[key] = values(sites[0].path, total, key[1])
        rows.append(Rows(sites[0], known[key]))
    return Inputs(tuple(rows), stats.missed)


def by_inputs(
    call: str,
    inputs: Inputs,
    of_weights: Callable[[jax.Array], jax.Array],
    of_units: Callable[[jax.Array], jax.Array],
) -> Criterion:
    """Scores ``of_weights(w * r)``, where ``r * r`` is what the row counts.

    Those of a unit are ``of_units`` of the sum of the squares of ``w * r`` over the
    weights that read it. The state is ``r``, like the parameters.
    """
    paths = ends(dict.fromkeys(rows.site.path for rows in inputs.rows))
    known = list(dict.fromkeys(rows.site.path for rows in inputs.rows))

    def own(path: Any) -> str | None:
        i = partner(path, paths)
        return None if i is None else known[i]

    def init(params: Tree) -> Tree:
        def leaf(path: Any, x: Any) -> jax.Array:
            mine = [r for r in inputs.rows if r.site.path == own(path)]
            dtype = wide_dtype(*(r.values.dtype for r in mine))
            like = jnp.zeros_like(at_least_float32(x), dtype)
            try:
                total = sum((r.weights(x) for r in mine), jnp.zeros_like(like))
            except (TypeError, ValueError):
                raise ValueError(
                    f"`{call}`: {path_name(path)!r} of shape {jnp.shape(x)} is "
                    "not of the shape that `calibrate` saw; a compact model has "
                    "statistics of its own."
                ) from None
            return like + laid_out_like(like, jnp.sqrt(total))

        return map_with_path(leaf, params)

    def score(params: Tree, state: Tree, grads: Any, key: Any) -> Tree:
        del grads, key  # inputs do not change

        def leaf(path: Any, w: Any, r: Any) -> jax.Array:
            if own(path) is None:
                i = partner(path, ends(path for path, _ in inputs.missed))
                why = "`calibrate` saw no such parameter"
                raise ValueError(
                    f"`{call}`: {path_name(path)!r} has no statistics: "
                    f"{why if i is None else inputs.missed[i][1]}; `where=` can "
                    "leave it out."
                )
            return of_weights(product(w, r))

        return map_with_path(leaf, params, state)

    def units(params: Tree, state: Tree, members: Members) -> list[jax.Array]:
        squares = map_with_path(
            lambda path, w, r: product(w, r) ** 2, params, state
        )
        reads = reads_of(
            call, members, params, lambda path: own(path) is not None
        )
        leaves = jax.tree.leaves(squares)
        sums = members.add_up(
            (numbers, line_of(leaves[i], axis, numbers.ndim == 3))
            for i, axis, numbers in reads
        )
        return list(map(of_units, sums))

    return Criterion(
        init=init,
        update=lambda grads, state, params: state,
        score=score,
        reads_grads=False,
        of_units=units,
    )


def reads_of(
    call: str, members: Members, params: Tree, known: Callable[[Any], bool]
) -> list[tuple[int, int, Numbers]]:
    """Which leaf reads units along which axis, by numbers of leaves.

    Raises:
      ValueError: No leaf that is ``known``, by its path, reads a pool.
    """
    leaves = [(p, x) for p, x in leaves_with_path(params) if not is_hole(x)]
    found = [
        (i, axis, numbers)
        for i, (path, x) in enumerate(leaves)
        if known(path)
        for axis, numbers in members.reads(path, x)
    ]
    if leaves:
        _check_read(call, members, leaves, [numbers for *_, numbers in found])
    return found


def _check_read(
    call: str,
    members: Members,
    leaves: Iterable[tuple[Any, Any]],
    read: list[Numbers],
) -> None:
    seen = np.unique(
        np.concatenate([np.array([-1]), *(x.ravel() for x in read)])
    )
    for pool in members.pools:
        if np.isin(pool, seen).all():
            continue
        parts = [
            f"{path_name(path)}[{axis}]"
            for path, x in leaves
            for axis, numbers in enumerate(members.of(path, x) or ())
            if np.isin(pool, numbers).any()
        ]
        raise ValueError(
            f"`{call}`: nothing is known of what reads the units of "
            f"{', '.join(map(repr, parts))}; `units(graph, where=...)` can leave "
            "them out."
        )
