"""From a fit to a smaller model: pruned from the dense one, repaired, fine-tuned."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core.describe import describe
from jprune._core.fits import Fit
from jprune._core.trees import leaves_with_path, path_name
from jprune._core.typing import Masks, Tree, Where
from jprune.allocations import fitted
from jprune.calibration import one_shot
from jprune.compaction import Compact, compact
from jprune.criteria import Criterion
from jprune.masks import apply_masks
from jprune.search.resume import Folder
from jprune.structures import Structure


class Candidate(NamedTuple):
    """A smaller model."""

    small: Compact
    params: Tree  # of the large shapes, 0 where masks are False
    masks: Masks


class Maker(NamedTuple):
    """Makes smaller models of one dense model."""

    fn: Any
    params: Tree
    batches: list[tuple[Any, ...]]  # arguments, for the repair
    structure: Structure
    where: Where
    criterion: Criterion | None
    finetune: Callable[..., Tree] | None
    seed: Any
    folder: Folder | None

    def make(self, number: int, fit: Fit) -> Candidate:
        """The model of a fit; one that is stored is read."""
        found = None
        if self.folder is not None:
            found = self.folder.load(number, self.params)
        params, masks = found or self._pruned(fit)
        if self.folder is not None and found is None:
            self.folder.save(number, params, masks)
        return Candidate(self._compact(params, masks), params, masks)

    def _pruned(self, fit: Fit) -> tuple[Tree, Masks]:
        """Parameters of the large shapes, and their masks."""
        params, masks, *_ = one_shot(
            self.fn,
            self.params,
            self.batches,
            fit.sparsity,
            structure=self.structure,
            where=self.where,
            allocation=fitted(fit),
            criterion=self.criterion,
            targets="dense",
            key=self.seed,
        )
        if self.finetune is None:
            return params, masks
        if self.structure.members is None:
            tuned = _tuned(self.finetune, self.fn, params, masks)
            return apply_masks(tuned, masks), masks
        small = self._compact(params, masks)
        smaller = _tuned(self.finetune, small.fn, small.params, None)
        return small.plan.expand(smaller), masks

    def _compact(self, params: Tree, masks: Masks) -> Compact:
        return compact(self.fn, params, *self.batches[0], masks=masks)


def _tuned(
    finetune: Callable[..., Tree], fn: Any, params: Tree, masks: Masks | None
) -> Tree:
    """What ``finetune`` returns, refused if it is no such tree."""
    found = finetune(fn, params, masks)
    place = "`compress(finetune=...)` must return parameters like those it got"
    form: Any = jax.tree.structure(params)
    if jax.tree.structure(found) != form:
        raise ValueError(f"{place}, got {describe(found)}.")
    for (path, old), (_, new) in zip(
        leaves_with_path(params), leaves_with_path(found), strict=True
    ):
        if np.shape(old) != np.shape(new):
            raise ValueError(
                f"{place}: {path_name(path)!r} has shape {np.shape(new)}, and had "
                f"{np.shape(old)}."
            )
    return found
