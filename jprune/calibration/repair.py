"""Products that are met on a walk, and what is written back."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.progress import bar
from jprune._core.stats import Moments, Site
from jprune._core.trees import is_hole, leaves_with_path, rebuild
from jprune._core.typing import Masks, Tree
from jprune._core.views import Steps, look, overlap
from jprune.calibration.calibrate import Plan, check_finite, inputs_of
from jprune.calibration.problems import judged, problem_of
from jprune.calibration.pruner import (
    Pruner,
    Sums,
    general,
    layers_of,
    one_layer,
)
from jprune.calibration.solvers import Problem, Solver

UNSEEN = "saw no row in these batches"
TIED = "is multiplied in several ways, of which one would not be repaired"


class Inputs:
    """The batches, and the products that a function has of some parameters."""

    def __init__(
        self,
        call: str,
        fn: Any,
        params: Tree,
        chosen: Tree,
        batches: Sequence[tuple[Any, ...]],
        weights: Sequence[Any],
    ) -> None:
        self.call, self.fn, self.params = call, fn, params
        self.batches, self.weights = batches, weights
        pairs = zip(
            leaves_with_path(params), leaves_with_path(chosen), strict=True
        )
        both = [(x, y) for x, (_, y) in pairs if not is_hole(x[1])]
        self.leaves = [x for x, _ in both]
        self.chosen = [not is_hole(y) for _, y in both]
        self.arrays = [jnp.asarray(x) for _, x in self.leaves]
        plan = Plan(call, fn, params, None)
        plan.chosen = self.chosen
        jax.eval_shape(plan.sums, params, batches[0], weights[0])
        self.names, self.sites, self.missed = (
            plan.names,
            plan.sites,
            dict(plan.missed),
        )
        self.places = {name: i for i, name in enumerate(self.names)}
        self.by_steps: dict[tuple[int, Steps], list[int]] = {}
        for n, site in enumerate(self.sites):
            key = self.places[site.path], site.steps
            self.by_steps.setdefault(key, []).append(n)
        self._leave_overlaps()
        self.several = {
            key
            for key, sites in self.by_steps.items()
            if len(sites) > 1 or any(plan.repeated[n] for n in sites)
        }

    def _leave_overlaps(self) -> None:
        """Parameters that are multiplied in different ways stay as they are."""
        ways: dict[int, list[Steps]] = {}
        for leaf, steps in self.by_steps:
            ways.setdefault(leaf, []).append(steps)
        for leaf, several in ways.items():
            if overlap(several, self.arrays[leaf].shape):
                self.missed[self.names[leaf]] = TIED
                self.chosen[leaf] = False
                for steps in several:
                    del self.by_steps[leaf, steps]

    def many(self) -> int:
        """How many products there are, those of each layer counted."""
        return sum(
            math.prod(jax.eval_shape(partial(look, steps), x).shape[:-3])
            for x, steps in (
                (self.arrays[leaf], steps) for leaf, steps in self.by_steps
            )
        )

    def tree(self, arrays: Sequence[Any]) -> Tree:
        """A tree like the parameters from one entry for each of them."""
        left = list(arrays)
        leaves = [
            x if is_hole(x) else left.pop(0)
            for _, x in leaves_with_path(self.params)
        ]
        return rebuild(self.params, leaves)

    def listed(self, masks: Masks) -> list[Any]:
        """One mask for each parameter, None where there is none."""
        pairs = zip(
            leaves_with_path(self.params), leaves_with_path(masks), strict=True
        )
        return [
            None if is_hole(mask) else mask
            for (_, x), (_, mask) in pairs
            if not is_hole(x)
        ]

    def dense_sums(self, leaves: set[int]) -> tuple[Moments, ...]:
        """The sums of the model as it was; those of other parameters are left out."""
        plan = Plan(self.call, self.fn, self.params, None)
        plan.chosen = [i in leaves for i in range(len(self.names))]
        step = jax.jit(plan.sums)
        total: Any = None
        for number, (args, rows) in enumerate(
            zip(self.batches, self.weights, strict=True)
        ):
            found = step(self.params, args, rows)
            check_finite(self.call, number, plan.sites, found)
            total = (
                found if total is None else jax.tree.map(jnp.add, total, found)
            )
        self.dense_sites = plan.sites
        result: tuple[Moments, ...] = total
        return result


class Met(NamedTuple):
    """A product that the walk has come to."""

    site: Site
    layers: tuple[int, ...]  # of the loops it stands in, which
    steps: Steps  # the site's, of this layer
    sums: Sums
    seen: np.ndarray  # bool [G]: which of its groups had rows


class Repair:
    """Meets products in turn; what is pruned there a subclass decides."""

    def __init__(
        self,
        inputs: Inputs,
        solver: Solver,
        targets: str,
        grid: Any,
    ) -> None:
        self.inputs, self.solver, self.grid = inputs, solver, grid
        self.dense_targets = targets == "dense"
        self.errors: dict[str, np.ndarray] = {}
        self.met: set[Any] = set()
        self.together = self._several()
        self.bar: Any = None  # while it walks

    def _several(self) -> dict[tuple[int, Steps], Moments]:
        """Sums over all inputs of what is multiplied more than once."""
        inputs = self.inputs
        if not inputs.several:
            return {}
        sums = inputs.dense_sums({leaf for leaf, _ in inputs.several})
        found: dict[tuple[int, Steps], Moments] = {}
        for site in inputs.dense_sites:
            key = inputs.places[site.path], site.steps
            if key in inputs.several:
                one = sums[site.moments]
                old = found.get(key)
                found[key] = (
                    one if old is None else jax.tree.map(jnp.add, old, one)
                )
        return found

    def walk(self, leaves: Sequence[Any]) -> list[Any]:
        """Goes through the program once; the parameters afterwards."""
        inputs = self.inputs
        weights = None if inputs.weights[0] is None else inputs.weights
        walk = Pruner(
            inputs.arrays, inputs.names, weights, self.meet, self.wanted
        )
        walk.leaves = list(leaves)
        program = jax.make_jaxpr(inputs.fn)(inputs.params, *inputs.batches[0])
        given = inputs_of(
            inputs.arrays, list(inputs.batches), list(inputs.weights)
        )
        with bar(inputs.call, inputs.many()) as self.bar:
            walk.program(program, given)
        for leaf, steps in inputs.by_steps:
            if (leaf, steps) not in {(i, general(s)) for i, s in self.met}:
                inputs.missed.setdefault(inputs.names[leaf], UNSEEN)
        return walk.leaves

    def wanted(self, leaf: int, steps: Steps) -> bool:
        """Whether a product is to be met: once."""
        known = (leaf, general(steps)) in self.inputs.by_steps
        return known and (leaf, steps) not in self.met

    def meet(self, leaf: int, steps: Steps, sums: Any, walk: Pruner) -> None:
        """Prunes and repairs what is multiplied here."""
        inputs, key = self.inputs, (leaf, general(steps))
        site = inputs.sites[inputs.by_steps[key][0]]
        if len(inputs.by_steps[key]) > 1:
            site = site._replace(bias=None)
        layers = layers_of(steps)
        if key in self.together:
            whole = self.together[key]
            sums = Sums(jax.tree.map(lambda x: x[layers], whole))
        else:
            sums = sums(self.dense_targets or self.needs_dense())
        count = np.asarray(sums.own.count)
        if (count > 0).any():
            self.met.add((leaf, steps))
            if not (count > 0).all():
                gone = int((count == 0).sum())
                inputs.missed[site.path] = (
                    f"{gone} of {len(count)} groups {UNSEEN}"
                )
            self.prune(Met(site, layers, steps, sums, count > 0), walk)
        self.bar.update()

    def needs_dense(self) -> bool:
        """Whether outputs are aimed at the dense model's, whatever ``targets`` says."""
        return False

    def prune(self, met: Met, walk: Pruner) -> None:
        """What a subclass does."""
        raise NotImplementedError

    def problem(
        self, site: Site, layers: tuple[int, ...], sums: Sums
    ) -> Problem:
        """The least squares of a product, with the dense kernel."""
        dense = self.inputs.arrays[self.inputs.places[site.path]]
        kernel = look(one_layer(site.steps, layers), dense)
        result: Problem = problem_of(
            kernel, sums, centred=site.bias is not None
        )
        return result

    def write(
        self, met: Met, new: jax.Array, mask: jax.Array, walk: Pruner
    ) -> None:
        """Writes a kernel back, moves its bias, and notes how far outputs are off."""
        inputs, (site, layers, steps, sums, _) = self.inputs, met
        leaf = inputs.places[site.path]
        old = look(steps, inputs.arrays[leaf]).astype(new.dtype)
        moves = site.bias is not None and self.solver.repairs
        squares, shift = judged(sums, old, new, mask, moves=moves)
        found = np.asarray(squares, float)
        if not np.isfinite(found).all():
            self._refuse(site.path, sums)
        self.errors[site.path] = self.errors.get(site.path, 0.0) + found
        walk.write(leaf, steps, new)
        if moves:
            assert site.bias is not None
            place = inputs.places[site.bias]
            where = one_layer(site.bias_steps, layers)
            bias = look(where, walk.leaves[place]).astype(new.dtype)
            walk.write(place, where, bias + shift)

    def _refuse(self, path: str, sums: Sums) -> None:
        """What is not finite is said here: of the inputs, or of what was solved."""
        call, own = self.inputs.call, sums.own
        if not all(np.isfinite(x).all() for x in jax.device_get(own)):
            raise ValueError(
                f"`{call}`: a batch has NaN or inf in what {path!r} is multiplied "
                "with, or its squares overflow; clean the batches, compute in "
                "float32, or leave the parameter out by `where=`."
            )
        raise ValueError(
            f"`{call}(solver={self.solver})`: the inputs of {path!r} have a "
            "singular Gram (fewer rows than inputs, or inputs that repeat each "
            "other): give more rows, or a larger `damping` or `ridge`."
        )

    def table(self) -> dict[str, tuple[float, float]]:
        """Errors as fractions of the outputs' power."""
        return {
            path: (
                before / power if power else 0.0,
                after / power if power else 0.0,
            )
            for path, (before, after, power) in self.errors.items()
        }
