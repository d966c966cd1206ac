"""Weights, N:M, groups, blocks and channels, product by product."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jprune._core.typing import Masks, Tree
from jprune._core.views import put
from jprune.calibration.chooser import Leaf, Part, leaf_only
from jprune.calibration.pruner import Pruner
from jprune.calibration.repair import Inputs, Met, Repair
from jprune.calibration.solvers import Problem
from jprune.calibration.solvers.least_squares import fitted
from jprune.calibration.solvers.sparsegpt import swept
from jprune.calibration.unit_inputs import rows_of
from jprune.choosing.families import Method, kept_units

RIDGE = 1e-3


class ByWeight(Repair):
    """Masks are trees of weights, and each product has a part of one."""

    def __init__(
        self,
        inputs: Inputs,
        method: Method,
        chosen: Tree,
        counts: Any,
        masks: Masks | None,
        fixed: bool,
        *rest: Any,
    ) -> None:
        super().__init__(inputs, *rest)
        marks: list[Any] = []
        if masks is not None:
            marks = kept_units(method, masks).units
        counts = None if counts is None else np.asarray(counts, np.int64)
        few, first = method.structure.few_units, 0
        self.masks: list[Any] = []
        self.parts: dict[int, Leaf] = {}
        for i, place in enumerate(inputs.listed(chosen)):
            if place is None:
                self.masks.append(optax.MaskedNode())
                continue
            value = inputs.arrays[i]
            only = leaf_only(inputs.params, i)
            mark = marks.pop(0) if marks else None
            self.parts[i] = Leaf(method, only, value, mark, fixed)
            if counts is not None:
                pools = 1 if few else self.parts[i].pools
                self.parts[i].keep(counts[first : first + pools])
                first += pools
            self.masks.append(jnp.ones_like(value, dtype=bool))

    def prune(self, met: Met, walk: Pruner) -> None:
        site, layers, steps, sums, seen = met
        place = self.inputs.places[site.path]
        problem = self.problem(site, layers, sums)
        part = self.parts[place].part(steps, seen)
        if self.solver.choose_inputs is not None:
            kernel, mask = self._inputs(site.path, problem, part)
        else:
            kernel, mask = self.solver.solve(problem, part)
            if self.dense_targets and self.solver.repairs:
                start = problem._replace(kernel=kernel)
                kernel = fitted(start, mask, RIDGE)
        if self.grid is not None:
            scales = self.grid.scales(jnp.where(mask, kernel, 0.0))
            start = problem._replace(kernel=kernel)
            kernel, _ = swept(start, None, scales, mask=mask)
        if not seen.all():  # a group that saw no row stays as it is
            unseen = jnp.asarray(~seen)[:, None, None]
            kernel = jnp.where(unseen, problem.kernel, kernel)
            mask = mask | unseen
        self.write(met, kernel, mask, walk)
        self.masks[place] = put(steps, self.masks[place], mask)

    def _inputs(
        self, path: str, problem: Problem, part: Part
    ) -> tuple[Any, Any]:
        """Whole inputs of this product alone: ``channel`` of a contracted axis."""
        numbers = part.numbers()
        rows = rows_of(numbers[..., 0])
        whole = (numbers == numbers[..., :1]).all()
        alone = rows is not None and len(rows) in (1, len(part.lost))
        if rows is None or not (whole and alone):
            raise ValueError(
                f"`{self.inputs.call}(solver={self.solver}, structure=...)`: "
                f"units of {path!r} are not whole inputs of it; "
                "`units(graph)` and `channel` of a contracted axis are, and "
                "`admm()` repairs all others."
            )
        # One pool has one count; experts that are pools of their own have theirs.
        lost = part.lost if len(rows) > 1 else part.lost.sum(keepdims=True)
        kept = self.solver.choose_inputs(  # type: ignore[misc]
            problem, jnp.asarray(rows), jnp.asarray(lost, jnp.int32)
        )
        if part.leaf.fixed:
            kept = part(jnp.zeros_like(problem.kernel))[..., 0]
        kernel = self.solver.solve(problem, kept)
        return kernel, jnp.broadcast_to(kept[..., None], kernel.shape)

    def result(self) -> tuple[list[Any], Masks]:
        """New parameters and masks."""
        leaves = self.walk(self.inputs.arrays)
        return leaves, self.inputs.tree(self.masks)
