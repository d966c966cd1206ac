"""The smallest model that keeps a promise."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core.checks import check_integer, check_member, check_number
from jprune._core.describe import describe
from jprune._core.digests import digest_of
from jprune._core.hosts import check_here
from jprune._core.programs import bound, check_call
from jprune._core.typing import Masks, Tree, Where
from jprune.choosing.choose import find_masks
from jprune.compaction import Compact, compact, trace_units, units
from jprune.compaction.costs import COSTS
from jprune.criteria import Criterion
from jprune.report import Speed, Timing, speed
from jprune.search.candidates import Candidate, Maker
from jprune.search.curves import Curves
from jprune.search.descent import Timer, descend, timed
from jprune.search.front import Front, Point
from jprune.search.judge import (
    Judge,
    batches_of,
    check_apart,
    check_taken,
    inputs_of,
    samples_of,
)
from jprune.search.promise import Promise, needed, promise
from jprune.search.resume import Folder
from jprune.search.sensitivity import sensitivity
from jprune.structures import Structure

SEARCHED = 256  # samples at least, for the curves
BUDGETS = (
    *(0.7, 0.5, 0.42, 0.35, 0.29, 0.25, 0.21, 0.17, 0.14, 0.12, 0.1),
    *(0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01),
)


class Compressed(NamedTuple):
    """What :func:`compress` returns; prints as sentences."""

    small: Compact  # the smaller model: `small.fn(small.params, *args)`
    params: Tree  # its parameters at the large shapes, 0 where masks are False
    masks: Masks
    front: Front  # every model that was tried
    promise: Promise  # of the smaller model
    curves: Curves
    point: Point | None  # that of the smaller model; None: the dense one
    stopped: str  # why no smaller model was tried
    speed: Speed | None  # beside the dense model, on the first batch

    def __str__(self) -> str:
        if self.point is None:
            lines = ["Nothing was removed."]
        else:
            left = ", ".join(
                f"{100 * x:.1f} % of the {name.replace('_', '-')}"
                for name, x in self.point.fit.left.items()
            )
            lines = [f"Left are {left}."]
            if self.speed is not None:
                lines.append(_said(self.speed["small"]))
        return "\n".join([*lines, str(self.promise), self.stopped])


def compress(
    fn: Any,
    params: Tree,
    batches: Iterable[Any],
    *,
    holdout: Iterable[Any],
    score: Callable[..., Any],
    inputs: int | None = None,
    tolerance: float = 0.01,
    confidence: float = 0.95,
    structure: Structure | None = None,
    where: Where = None,
    criterion: Criterion | None = None,
    finetune: Callable[..., Tree] | None = None,
    groups: Callable[..., Any] | None = None,
    by: str | Timer = "multiply_adds",
    budgets: Sequence[float] = BUDGETS,
    distance: Callable[[Any, Any], Any] | None = None,
    samples: int = 4096,
    resume: str | PathLike[str] | None = None,
    seed: int = 0,
    **static: Any,
) -> Compressed:
    """Finds the smallest version of a trained model within a loss that you allow.

    It measures once how much each layer's units matter (:func:`sensitivity`). Then it
    tries budgets from large to small. For each, :func:`fit` decides how much to remove
    where; then the dense model is pruned and repaired (:func:`jprune.one_shot`),
    fine-tuned if you pass ``finetune``, made small (:func:`jprune.compact`), and judged
    on ``holdout``. It goes on while the loss is below ``tolerance`` with
    ``confidence``, and stops at the first model that fails. Because it stops there, the
    confidence holds although several models were tried.

    Args:
      fn: The function of a trained model: any function of parameters and arrays.
      params: Its parameters.
      batches: An iterable of batches, all held at once. The first entries of each are
        the arguments of ``fn``; labels are not needed. The search uses the first batches
        that hold 256 samples, and the repair the first that hold ``samples``; of these
        it takes the ones with the shapes that most samples have. Batches are not split,
        so use some hundreds of samples per batch.
      holdout: Batches of other samples, on which models are judged.
      score: ``score(outputs, *batch) -> [n]``: for each sample, whether the output is
        right (bool, or integers 0 and 1), or a number in [0, 1]. Numbers need more
        samples for the same promise.
      inputs: How many entries of a batch are arguments of ``fn``. None: it is found, if
        only one number is possible.
      tolerance: How much of the mean score may be lost: .01 is one point.
      confidence: The confidence of the promise, between 0 and 1.
      structure: What is removed. None: all units that can be removed.
        ``unstructured()``: single weights; arrays keep their shapes, and only a sparse
        file is smaller.
      where: The leaves that are pruned, as in :func:`jprune.find_masks`: ``channel(0)``
        with ``where="Dense_0/kernel"`` removes whole inputs. For units, pass ``where``
        to :func:`jprune.units`.
      criterion: Ranks the units. None: ``gauss_newton`` ranks them for the search, and
        the repair chooses which to remove.
      finetune: ``finetune(fn, params, masks) -> params``; :func:`jprune.distill` makes
        one. For units it gets the smaller model and None as masks, for weights the whole
        model and masks. None: no fine-tuning, only repair.
      groups: ``groups(*batch) -> [n]``: the group of each sample. The promise then names
        the group that loses most.
      by: The cost to reduce: ``"multiply_adds"``, ``"parameters"`` or ``"bytes"``; or a
        timer ``(fn, params, *args) -> seconds``, as :func:`jprune.report.latency`. With
        a timer, budgets are of multiply-adds, ``structure=None`` keeps multiples of 8
        units, and the fastest model that keeps the promise wins, if it is faster than
        the dense one.
      budgets: The fractions of the cost that are tried, in falling order.
      distance: As in :func:`sensitivity`, with the same default.
      samples: How many samples the repair uses. More are better, but all that the
        program computes from them is held at once. Static.
      resume: A folder that stores the models made so far: the same call continues from
        there.
      seed: Seed of scores and searches: the same seed gives the same result.
      **static: Further keyword arguments of ``fn``, fixed; no arrays.

    Returns:
      :class:`Compressed`. If no model keeps the promise, it holds the dense one.

    Raises:
      ValueError: There are too few samples for any promise (the message says how many
        are needed); scores have another length or range; a batch is in both ``batches``
        and ``holdout``; nothing can be removed; ``finetune`` returns other shapes.

    References:
      He et al., `AMC <https://arxiv.org/abs/1802.03494>`_, 2018 (budgets); Tango, 1998
      (the bound); Maurer et al., `Multiple comparisons in drug clinical trials`, 1995
      (fixed sequences of tests).

    >>> import jax, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> params = {"w": jax.random.normal(keys[0], (4, 8)),
    ...           "v": jax.random.normal(keys[1], (8, 3)).at[4:].set(0.)}
    >>> x, other = (jax.random.normal(key, (400, 4)) for key in keys[2:])
    >>> result = jprune.compress(
    ...     fn, params, [(x,)], holdout=[(other, fn(params, other).argmax(-1))],
    ...     inputs=1, score=lambda logits, x, y: logits.argmax(-1) == y)
    >>> result.small.params["w"].shape, result.promise.kept  # four units did it all
    ((4, 4), True)
    """
    call = "compress"
    fn = bound(call, fn, static)
    check_call(call, fn, params, (), concrete=True)
    allowed = _fraction(f"`{call}(tolerance=...)`", tolerance)
    sure = _fraction(f"`{call}(confidence=...)`", confidence)
    samples = check_integer(f"`{call}(samples=...)`", samples, 1, static=True)
    _check_functions(score=score, finetune=finetune, groups=groups)
    _check_by(by, COSTS)
    tried = _falling(budgets)
    check_integer(f"`{call}(seed=...)`", seed, 0, static=True)
    searched = batches_of("batches", batches)
    held = batches_of("holdout=...", holdout)
    check_here(call, params, searched, held)
    number = inputs_of(fn, params, searched[0], inputs)
    check_apart(searched, held, number)
    judge = Judge(held, number, score, groups)
    dense = judge.scores(fn, params)
    _check_samples(dense, allowed, sure)
    args = [batch[:number] for batch in searched]
    check_taken(fn, params, args)
    if structure is None:
        graph = trace_units(fn, params, *args[0])
        structure = units(graph, round_to=8 if callable(by) else 1)
    check_member(call, "structure", structure, Structure)
    folder = None
    if resume is not None:
        options = (allowed, sure, structure, where, criterion, by, seed)
        words = [
            *map(describe, (fn, *options, samples, distance, finetune)),
            repr(tried),
        ]
        asked = digest_of((params, searched, held), ", ".join(words))
        folder = Folder(resume, asked)
    curves = sensitivity(
        fn,
        params,
        _first(args, SEARCHED),
        structure=structure,
        where=where,
        criterion=criterion,
        distance=distance,
        seed=seed,
    )
    cost = _cost(curves, by)
    repairing = _alike(_first(args, samples))
    maker = Maker(
        fn,
        params,
        repairing,
        structure,
        where,
        criterion,
        finetune,
        seed,
        folder,
    )

    def promised(candidate: Candidate) -> Promise:
        small = candidate.small
        return promise(
            dense,
            judge.scores(small.fn, small.params),
            tolerance=allowed,
            confidence=sure,
            groups=judge.groups,
            seed=seed,
        )

    time = partial(timed, by, fn, params, args[0]) if callable(by) else None
    best, front, stopped = descend(
        curves, cost, tried, seed, maker, promised, time
    )
    if best is not None:
        made, point = best
        models = {
            "dense": (fn, params),
            "small": (made.small.fn, made.small.params),
        }
        return Compressed(
            *made,
            front,
            point.promise,
            curves,
            point,
            stopped,
            speed(models, *args[0]),
        )
    if front[0].promise.kept:  # by a timer
        stopped = f"No model is faster than the dense one. {stopped}"
    return Compressed(
        compact(fn, params, *args[0]),
        params,
        find_masks(params, 0.0, structure=structure, where=where),
        front,
        front[0].promise,
        curves,
        None,
        stopped,
        None,
    )


def _check_functions(**given: Any) -> None:
    for name, value in given.items():
        if not (callable(value) or (value is None and name != "score")):
            raise ValueError(
                f"`compress({name}=...)` must be a function, got "
                f"{describe(value)}."
            )


def _cost(curves: Curves, by: Any) -> str:
    """The name of the cost that budgets are fractions of."""
    _check_by(by, curves.costs)
    return "multiply_adds" if callable(by) else str(by)


def _check_by(by: Any, costs: Iterable[str]) -> None:
    cost = "multiply_adds" if callable(by) else by
    if not isinstance(cost, str) or cost not in costs:
        raise ValueError(
            "`compress(by=...)` must be one of "
            f"{', '.join(map(repr, costs))}, or a timer "
            f"`(fn, params, *args) -> seconds`, got {describe(by)}."
        )


def _falling(budgets: Any) -> tuple[float, ...]:
    """Budgets as numbers, refused if they are none or do not fall."""
    place = "`compress(budgets=...)`"
    try:
        found = tuple(check_number(place, budget) for budget in budgets)
    except TypeError:
        found = ()
    ends = zip((1.0, *found), (*found, 0.0), strict=True)
    if not found or not all(a >= b for a, b in ends) or found[-1] <= 0:
        raise ValueError(
            f"{place} must be fractions in (0, 1] that fall, as in (.5, .25), got "
            f"{describe(budgets)}."
        )
    return found


def _fraction(place: str, value: Any) -> float:
    number = check_number(place, value)
    if not isinstance(number, float) or not 0 < number < 1:
        raise ValueError(
            f"{place} must be a number between 0 and 1, got {describe(value)}."
        )
    return number


def _check_samples(dense: Any, tolerance: float, confidence: float) -> None:
    """Refuses at once what no model could keep."""
    least = needed(tolerance, confidence, numbers=dense.dtype != bool)
    if len(dense) < least:
        raise ValueError(
            f"`compress(holdout=..., tolerance={tolerance:g})`: a promise of "
            f"{100 * tolerance:g} points with a confidence of {confidence:g} takes "
            f"at least {least:,} samples, even if nothing is lost, and there are "
            f"{len(dense):,}; give more, or allow more."
        )


def _first(batches: list[Any], samples: int) -> list[Any]:
    """As many batches as hold so many samples."""
    found, total = [], 0
    for batch in batches:
        found.append(batch)
        total += samples_of(batch)
        if total >= samples:
            break
    return found


def _alike(batches: list[Any]) -> list[Any]:
    """Those of the shapes that most samples have: a shorter last one is left out."""
    found: dict[str, list[Any]] = {}
    for batch in batches:
        shapes = str(jax.tree.map(np.shape, batch))
        found.setdefault(shapes, []).append(batch)
    return max(found.values(), key=lambda some: sum(map(samples_of, some)))


def _said(timing: Timing) -> str:
    """How fast a model is, in words."""
    return (
        f"It takes {1e3 * timing.seconds:.3g} ms for the first batch, and is "
        f"{timing.ratio:.2f} times as fast as the dense model (half of all rounds: "
        f"{timing.low:.2f} to {timing.high:.2f})."
    )
