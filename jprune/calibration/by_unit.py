"""Whole units: chosen where they are summed over, gone wherever they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._core.typing import Masks, Tree
from jprune._core.views import look
from jprune.calibration.problems import problem_of
from jprune.calibration.pruner import Pruner, Sums, one_layer
from jprune.calibration.repair import TIED, Inputs, Met, Repair
from jprune.calibration.solvers import Problem
from jprune.calibration.solvers.base import damped, diagonal, inverse
from jprune.calibration.unit_inputs import Consumer, Group, groups_of, rows_of
from jprune.choosing.families import Method, kept_units

UNREAD = (
    "no product that sums over these units is seen: they go by the criterion"
)


class ByUnit(Repair):
    """Masks are those of units, which span parameters."""

    def __init__(
        self,
        inputs: Inputs,
        method: Method,
        masks: Masks,
        chosen: Tree,
        fixed: bool,
        *rest: Any,
    ) -> None:
        super().__init__(inputs, *rest)
        self.method, self.fixed, self.selected = method, fixed, chosen
        members = method.structure.members
        assert members is not None
        self.pools = members.pools
        self.groups = groups_of(
            members, inputs.sites, inputs.leaves, inputs.places
        )
        # Which a criterion keeps: how many that are is what counts.
        self.marks = [np.array(x) for x in kept_units(method, masks).units]
        # What has no product is a part of units all the same: a bias, a scale.
        left = {k: why for k, why in inputs.missed.items() if why == TIED}
        inputs.missed = left
        names = method.structure.names or ()
        for group in self.groups:
            if not group.consumers:
                inputs.missed[names[group.pool][0]] = UNREAD
        self.keep: dict[int, bool] = {}
        self.first: list[Any] | None = None  # masks from before the walk
        self.of_site: dict[Any, list[tuple[Group, Consumer]]] = {}
        for group in self.groups:
            for one in group.consumers:
                key = one.site, one.layers
                self.of_site.setdefault(key, []).append((group, one))
        if not fixed and self.solver.repairs:
            self._choose_first()
        for group in self.groups:
            if fixed or not self.solver.repairs or not group.consumers:
                self._settle(group, self._marks(group))
        if self.keep:
            self.first = self._masks_now()

    def _marks(self, group: Group) -> np.ndarray:
        result: np.ndarray = self.marks[group.pool].reshape(
            -1, len(group.units)
        )[group.row]
        return result

    def _settle(self, group: Group, stays: Any) -> None:
        for unit, stay in zip(group.units, stays, strict=True):
            self.keep[int(unit)] = bool(stay)

    def _one_input(self, group: Group) -> bool:
        """Whether all products that sum over these units have the same inputs."""
        inputs = {
            (self.inputs.sites[one.site].moments, one.layers)
            for one in group.consumers
        }
        # Of products side by side, none can be chosen from for itself: how many of
        # its units go is the pool's to say.
        rows = rows_of(group.consumers[0].units)
        return len(inputs) == 1 and rows is not None and len(rows) == 1

    def _choose_first(self) -> None:
        """Chooses what several inputs have, a residual stream say, before the walk.

        By what each product of the dense model would miss, relative to its outputs,
        without the unit, all others repaired.
        """
        wide = [
            group
            for group in self.groups
            if group.consumers and not self._one_input(group)
        ]
        if not wide:
            return
        inputs = self.inputs
        leaves = {
            inputs.places[inputs.sites[one.site].path]
            for group in wide
            for one in group.consumers
        }
        sums = inputs.dense_sums(leaves)
        known = {(site.path, site.steps): site for site in inputs.dense_sites}
        for group in wide:
            total = np.zeros(len(group.units))
            for one in group.consumers:
                site = inputs.sites[one.site]
                site = known[site.path, site.steps]
                here = jax.tree.map(
                    lambda x, at=one.layers: x[at], sums[site.moments]
                )
                problem = self.problem(site, one.layers, Sums(here))
                missed = np.asarray(_missed(problem))
                for k, unit in enumerate(group.units):
                    total[k] += missed[one.units == unit].sum()
            stays = np.ones(len(group.units), bool)
            lost = int((~self._marks(group)).sum())
            stays[np.argsort(total, kind="stable")[:lost]] = False
            self._settle(group, stays)

    def _masks_now(self) -> list[Any]:
        """Masks of what is settled, one for each parameter."""
        gone = [unit for unit, stays in self.keep.items() if not stays]
        marks = [jnp.asarray(~np.isin(pool, gone)) for pool in self.pools]
        masks = self.method.structure.to_masks(marks, self.selected)
        return self.inputs.listed(masks)

    def needs_dense(self) -> bool:
        return self.first is not None

    def prune(self, met: Met, walk: Pruner) -> None:
        site, layers, steps, sums, seen = met
        number = self.inputs.by_steps[
            self.inputs.places[site.path], site.steps
        ][0]
        mine = self.of_site.get((number, layers), [])
        if not mine:
            return
        problem = self.problem(site, layers, sums)
        kept = np.ones(problem.kernel.shape[:2], bool)
        for group, one in mine:
            if int(group.units[0]) not in self.keep:
                self._choose(group, one, sums)
            for unit in group.units:
                if not self.keep[int(unit)]:
                    kept &= one.units != unit
        if kept.all() and self.first is None:
            return
        stays = jnp.asarray(kept)
        kernel = jnp.where(stays[..., None], problem.kernel, 0.0)
        if self.solver.repairs:
            some = jnp.asarray(seen)[:, None, None]
            solved = self.solver.solve(problem, stays)
            kernel = jnp.where(some, solved, kernel)
        mask = jnp.broadcast_to(stays[..., None], kernel.shape)
        if self.first is not None:
            first = self.first[self.inputs.places[site.path]]
            if first is not None:
                mask &= look(steps, first)
                kernel = jnp.where(mask, kernel, 0.0)
        self.write(met, kernel, mask, walk)

    def _choose(self, group: Group, one: Consumer, sums: Sums) -> None:
        """One choice for all products that share this input, side by side."""
        sites = [self.inputs.sites[x.site] for x in group.consumers]
        biased = all(site.bias is not None for site in sites)
        problems = []
        for site in sites:
            dense = self.inputs.arrays[self.inputs.places[site.path]]
            kernel = look(one_layer(site.steps, one.layers), dense)
            problems.append(problem_of(kernel, sums, centred=biased))
        joined = problems[0]._replace(
            kernel=jnp.concatenate([x.kernel for x in problems], 2),
            right=jnp.concatenate([x.right for x in problems], 2),
        )
        rows = rows_of(one.units)
        assert rows is not None
        assert self.solver.choose_inputs is not None
        lost = int((~self._marks(group)).sum())
        kept = np.asarray(
            self.solver.choose_inputs(
                joined, jnp.asarray(rows), jnp.full(1, lost, jnp.int32)
            )
        )
        gone = set(one.units[(one.units >= 0) & ~kept].tolist())
        self._settle(group, [int(u) not in gone for u in group.units])

    def result(self) -> tuple[list[Any], Masks]:
        """New parameters and masks."""
        inputs = self.inputs
        start = list(inputs.arrays)
        if self.first is not None:
            start = [
                x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))
                for x, mask in zip(start, self.first, strict=True)
            ]
        leaves = self.walk(start)
        masks = [
            optax.MaskedNode() if mask is None else mask
            for mask in self._masks_now()
        ]
        return leaves, inputs.tree(masks)


@jax.jit
def _missed(problem: Problem) -> Any:
    """[G, K]: what goes without each input, relative to the outputs' power."""
    left = diagonal(inverse(damped(problem.gram, 0.01)))
    lost = jnp.sum(problem.kernel**2, -1) / left
    power = jnp.sum(problem.kernel * problem.right)  # of all groups
    return lost / jnp.maximum(power, jnp.finfo(lost.dtype).tiny)
