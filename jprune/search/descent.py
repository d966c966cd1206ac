"""Budgets from large to small, until a model does not keep the promise."""

from collections.abc import Callable, Sequence
from typing import Any

from jprune._core.progress import bar
from jprune._core.typing import Tree
from jprune.search.candidates import Candidate, Maker
from jprune.search.curves import Curves
from jprune.search.fitting import fit
from jprune.search.front import Front, Point
from jprune.search.problem import least_left
from jprune.search.promise import Promise

Timer = Callable[..., float]
Best = tuple[Candidate, Point] | None


def descend(
    curves: Curves,
    cost: str,
    budgets: Sequence[float],
    seed: int,
    maker: Maker,
    promised: Callable[[Candidate], Promise],
    time: Callable[[Candidate, Point], Point] | None,
) -> tuple[Best, Front, str]:
    """Budgets from large to small, until the promise does not hold.

    One model after the other, and no second try: so all that held before hold at once,
    with the confidence of one.
    """
    best: Best = None
    points: list[Point] = []
    least = least_left(curves, cost)
    with bar("compress", len(budgets)) as shown:
        for budget in budgets:
            shown.set_postfix_str(f"{100 * budget:.3g} % of {cost}")
            if budget < least:
                if points:
                    return best, Front(points), _end(least, cost)
                raise ValueError(
                    "`compress(budgets=...)`: with as few units as were measured "
                    f"{100 * least:.1f} % of the {cost.replace('_', '-')} are left, "
                    "which is the least that can be reached, and the first budget "
                    f"is {100 * budget:.3g} %; give larger ones."
                )
            found = fit(curves, {cost: budget}, seed=seed)
            shown.update()
            if points and (found.counts == points[-1].fit.counts).all():
                continue
            made = maker.make(len(points), found)
            point = Point(budget, found, promised(made))
            if time is not None and point.promise.kept:
                point = time(made, point)
            points.append(point)
            if not point.promise.kept:
                return best, Front(points), _why(point, cost)
            if _is_better(point, None if best is None else best[1]):
                best = made, point
    return best, Front(points), "All budgets were tried."


def timed(
    timer: Timer,
    fn: Any,
    params: Tree,
    args: tuple[Any, ...],
    made: Candidate,
    point: Point,
) -> Point:
    """The dense and the smaller model, timed one after the other."""
    return point._replace(
        dense_seconds=float(timer(fn, params, *args)),
        seconds=float(timer(made.small.fn, made.small.params, *args)),
    )


def _end(least: float, cost: str) -> str:
    """Why there is no smaller model."""
    return (
        f"Less than {100 * least:.1f} % of the {cost.replace('_', '-')} can't be "
        "reached: each pool keeps a unit, and 4 % of them."
    )


def _why(point: Point, cost: str) -> str:
    """Why it stopped there."""
    found = point.promise
    left = f"{100 * point.fit.left[cost]:.1f} % of the {cost.replace('_', '-')}"
    text = (
        f"It stopped at {left}: the loss there is {100 * found.loss:.2f} points, and "
        f"at most {100 * found.bound:.2f}."
    )
    if found.loss < found.tolerance:
        text += " More holdout samples would say more."
    return text


def _is_better(point: Point, best: Point | None) -> bool:
    """Of models that keep the promise the last is the smallest.

    Where a timer decides it is the fastest, if it is faster than the dense model.
    """
    if point.times is None:
        return True
    before = None if best is None else best.times
    return point.times > (1.0 if before is None else before)
