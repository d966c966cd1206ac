"""Samples one by one: what a model scores on data that no search has seen."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jprune._core.checks import check_integer
from jprune._core.describe import describe
from jprune._core.digests import digest_of
from jprune._core.typing import Tree
from jprune.calibration.calibrate import arguments


class Judge:
    """Scores models on the same samples."""

    def __init__(
        self,
        holdout: list[tuple[Any, ...]],
        inputs: int,
        score: Callable[..., Any],
        groups: Callable[..., Any] | None,
    ) -> None:
        self.holdout, self.inputs, self.score = holdout, inputs, score
        self.groups = None
        if groups is not None:
            found = [np.asarray(groups(*batch)) for batch in holdout]
            for number, (names, batch) in enumerate(
                zip(found, holdout, strict=True)
            ):
                if names.shape != (samples_of(batch),):
                    raise ValueError(
                        "`compress(groups=...)` must return the group of each "
                        f"sample, [{samples_of(batch)}] of holdout batch {number}, "
                        f"got {describe(names)}."
                    )
            self.groups = np.concatenate(found)

    def scores(self, fn: Any, params: Tree) -> np.ndarray:
        """Bool or in [0, 1], one for each sample."""
        run = jax.jit(fn)
        found = [
            self._checked(
                number,
                batch,
                self.score(run(params, *batch[: self.inputs]), *batch),
            )
            for number, batch in enumerate(self.holdout)
        ]
        return np.concatenate(found)

    def _checked(
        self, number: int, batch: tuple[Any, ...], scores: Any
    ) -> np.ndarray:
        place = f"`compress(score=...)`: of holdout batch {number}"
        found = np.asarray(scores)
        if found.shape != (samples_of(batch),):
            raise ValueError(
                f"{place} with {samples_of(batch)} samples it must return one "
                f"number for each, [{samples_of(batch)}], got {describe(found)}; "
                "a mean says nothing about single samples."
            )
        if found.dtype == bool:
            return found
        whole = np.issubdtype(found.dtype, np.integer)
        found = found.astype(np.float64)
        wrong = ~((found >= 0) & (found <= 1))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"{place} it must be bool or lie in [0, 1], got {found[at]} for "
                f"sample {at}; a loss can be turned into a score, as in "
                "`jnp.exp(-loss)`."
            )
        # Integers in [0, 1] are outcomes, and of those more can be promised.
        return found.astype(bool) if whole else found


def samples_of(batch: Any) -> int:
    """How many samples a batch has: along the first axis of its arrays."""
    first = jax.tree.leaves(batch)[0]
    return int(np.shape(first)[0]) if np.ndim(first) else 1


def batches_of(name: str, batches: Any) -> list[tuple[Any, ...]]:
    """Batches as tuples, all at once."""
    if hasattr(batches, "dtype") or not isinstance(batches, Iterable):
        raise ValueError(
            f"`compress({name})` must be an iterable of batches, each a tuple of "
            f"arrays; got {describe(batches)}. For one batch write `[(x, y)]`."
        )
    if isinstance(batches, tuple) and all(hasattr(x, "dtype") for x in batches):
        raise ValueError(
            f"`compress({name})` is a tuple of {len(batches)} arrays: for one batch "
            "write `[(x, y)]`, for batches that are single arrays a list."
        )
    found = [arguments(batch) for batch in batches]
    if not found:
        raise ValueError(f"`compress({name})` is empty: nothing was read.")
    return found


def inputs_of(
    fn: Any, params: Tree, batch: tuple[Any, ...], inputs: int | None
) -> int:
    """How many entries of a batch are arguments of ``fn``.

    What was not said is found out where one number alone can be right.
    """
    call = "`compress(inputs=...)`"
    if inputs is not None:
        inputs = int(check_integer(call, inputs, 1, static=True))
        if not 1 <= inputs <= len(batch):
            raise ValueError(
                f"{call} must lie between 1 and the {len(batch)} entries of a "
                f"batch, got {describe(inputs)}."
            )
        return inputs
    fits, error = [], None
    for number in range(1, len(batch) + 1):
        try:
            jax.eval_shape(fn, params, *batch[:number])
        except Exception as failed:
            error = failed
        else:
            fits.append(number)
    if not fits:
        raise ValueError(
            f"`compress(fn, params, batches)`: fn takes none of the first entries of "
            f"a batch, {describe(batch)}: {error}"
        ) from error
    if len(fits) > 1:
        raise ValueError(
            f"{call}: fn takes the first {' or '.join(map(str, fits))} entries of a "
            "batch; say which, as in `inputs=1`."
        )
    return fits[0]


def check_taken(fn: Any, params: Tree, batches: list[Any]) -> None:
    """Refuses arguments that ``fn`` does not take: labels as a batch, say."""
    seen = set()
    for number, batch in enumerate(batches):
        shapes = str(jax.tree.map(np.shape, batch))
        if shapes in seen:
            continue
        seen.add(shapes)
        try:
            jax.eval_shape(fn, params, *batch)
        except Exception as error:
            raise ValueError(
                f"`compress(fn, params, batches)`: fn does not take batch {number}, "
                f"{describe(batch)}: {error}"
            ) from error


def check_apart(batches: Any, holdout: Any, inputs: int) -> None:
    """Refuses arguments that are searched on and judged on."""
    seen = {digest_of(batch[:inputs]): i for i, batch in enumerate(batches)}
    for number, batch in enumerate(holdout):
        other = seen.get(digest_of(batch[:inputs]))
        if other is not None:
            raise ValueError(
                f"`compress(batches, holdout=...)`: holdout batch {number} is batch "
                f"{other} of those that are searched on; a promise takes samples "
                "that no search has seen."
            )
