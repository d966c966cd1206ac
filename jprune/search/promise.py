"""What may be promised of a smaller model, from samples that no search has seen."""

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np


class Promise(NamedTuple):
    """An upper bound on the loss, for data like the samples; prints as sentences.

    ``loss`` is the mean score of the dense model minus that of the smaller one.
    """

    kept: bool  # whether the bound is at most the tolerance
    samples: int
    tolerance: float
    confidence: float
    dense: float  # mean scores
    small: float
    loss: float
    bound: float  # the loss is below it, with this confidence
    worst: "Worst | None" = None  # of groups, if they were given

    def __str__(self) -> str:
        points = [f"{100 * x:.2f}" for x in (self.dense, self.small, self.loss)]
        bound, limit = 100 * self.bound, 100 * self.tolerance
        lines = [
            f"On {self.samples:,} samples that no search has seen the score is "
            f"{points[1]} % (dense: {points[0]} %), a loss of {points[2]} points."
        ]
        sure = f"{100 * self.confidence:g} %"
        if self.kept:
            lines.append(
                f"On data like these it is below {bound:.2f} points, with a "
                f"confidence of {sure}: the promise of {limit:g} is kept."
            )
        else:
            lines.append(
                f"With a confidence of {sure} only {bound:.2f} points can be "
                f"promised, and {limit:g} were asked for."
            )
        if self.worst is not None:
            name, samples, loss, most = self.worst
            lines.append(
                f"The group that loses most is {name}: {100 * loss:.2f} points on "
                f"{samples:,} samples, at most {100 * most:.2f}."
            )
        return "\n".join(lines)


class Worst(NamedTuple):
    """The group whose loss is largest."""

    group: Any
    samples: int
    loss: float
    bound: float  # for this group alone


def promise(
    dense: np.ndarray,
    small: np.ndarray,
    *,
    tolerance: float,
    confidence: float,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Promise:
    """A one-sided bound on the loss, from paired scores of the same samples.

    Of outcomes that are right or wrong it is Tango's score bound, of numbers in
    [0, 1] the bound of a bet that no honest game lets win.

    Args:
      dense: Scores ``[n]``, bool or in [0, 1].
      small: Those of the smaller model on the same samples.
      tolerance: Which loss is asked for, in (0, 1).
      confidence: Of the bound, in (0, 1).
      groups: To which group each sample belongs, ``[n]``.
      seed: The order of the samples in a bet, which must not be sorted by outcome.

    References:
      Tango, `Equivalence test and confidence interval for the difference in
      proportions for the paired-sample design
      <https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C891::AID-SIM780%3E3.0.CO;2-B>`_,
      1998; Waudby-Smith and Ramdas, `Estimating means of bounded random variables by
      betting <https://arxiv.org/abs/2010.09686>`_, 2024, section 4.

    >>> import numpy as np
    >>> from jprune.search.promise import promise
    >>> dense = np.arange(1000) < 980
    >>> print(promise(dense, dense, tolerance=.01, confidence=.95))
    On 1,000 samples that no search has seen the score is 98.00 % (dense: 98.00 %), a loss of 0.00 points.
    On data like these it is below 0.27 points, with a confidence of 95 %: the promise of 1 is kept.
    """
    alpha = 1 - confidence
    bound = _bound(dense, small, alpha, seed)
    worst = None
    if groups is not None:
        found = []
        for name in np.unique(groups):
            here = groups == name
            found.append(
                Worst(
                    name.item() if isinstance(name, np.generic) else name,
                    int(here.sum()),
                    _loss(dense[here], small[here]),
                    _bound(dense[here], small[here], alpha, seed),
                )
            )
        worst = max(found, key=lambda group: group.loss)
    return Promise(
        bound <= tolerance,
        len(dense),
        tolerance,
        confidence,
        float(np.mean(dense, dtype=float)),
        float(np.mean(small, dtype=float)),
        _loss(dense, small),
        bound,
        worst,
    )


def needed(
    tolerance: float, confidence: float, *, numbers: bool, differ: float = 0.0
) -> int:
    """How many samples a promise takes if nothing is lost.

    Args:
      tolerance: Which loss is asked for.
      confidence: Of the bound.
      numbers: Whether scores are numbers, not outcomes.
      differ: Of outcomes, the share of samples on which the models differ, as
        often for the better as for the worse.
    """
    alpha = 1 - confidence

    def fails(n: int) -> bool:
        if numbers:
            return not _wins(np.zeros(n), tolerance, alpha)
        half = differ * n / 2
        return _score(half, half, n, tolerance) > -_quantile(alpha)

    high = 1
    while fails(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fails(middle) else (low, middle)
    return high


def _loss(dense: np.ndarray, small: np.ndarray) -> float:
    return float(np.mean(dense.astype(float) - small.astype(float)))


def _bound(
    dense: np.ndarray, small: np.ndarray, alpha: float, seed: int
) -> float:
    """The least loss that is refuted, with all that are larger."""
    if dense.dtype == bool:
        lost, won = int((dense & ~small).sum()), int((small & ~dense).sum())
        limit = -_quantile(alpha)

        def refuted(loss: float) -> bool:
            return _score(lost, won, len(dense), loss) <= limit
    else:
        order = np.random.default_rng(seed).permutation(len(dense))
        apart = (dense.astype(float) - small.astype(float))[order]

        def refuted(loss: float) -> bool:
            return _wins(apart, loss, alpha)

    low, high = max(_loss(dense, small), -1.0), 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def _quantile(alpha: float) -> float:
    return NormalDist().inv_cdf(1 - alpha)


def _score(lost: float, won: float, n: int, loss: float) -> float:
    """Tango's statistic for a true loss: negative where less was seen.

    ``lost`` samples are right in the dense model alone, ``won`` in the smaller one.
    The share of the latter is what is likeliest if the loss is what it is said to be.
    """
    if not n or abs(loss) >= 1:
        return -math.inf if n and loss >= 1 else math.inf
    a, c = 2 * n, -won * loss * (1 - loss)
    b = -lost - won + (2 * n - lost + won) * loss
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * share + loss * (1 - loss))
    apart = lost - won - n * loss
    if variance <= 0:
        return 0.0 if apart == 0 else math.copysign(math.inf, apart)
    return apart / math.sqrt(variance)


_MOST = 0.5  # of what a bet may risk: all of it could be lost at once


def _wins(apart: np.ndarray, loss: float, alpha: float) -> bool:
    """Whether betting that less is lost wins more than 1 / alpha.

    Each sample's stake is set by those before it, so that if the true loss is this or
    more, no stake gains in the mean, and by Ville's inequality a fortune of 1 / alpha
    is as rare as alpha.
    """
    gain = (loss - apart) / (1 + loss)  # at least -1
    n = len(gain)
    before = np.arange(1, n + 1)
    mean = (np.cumsum(np.append(0.0, gain[:-1]))) / before
    spread = np.cumsum((gain - mean) ** 2)
    variance = (0.25 + np.append(0.0, spread[:-1])) / before
    stake = np.sqrt(2 * math.log(1 / alpha) / (n * variance))
    fortune = np.cumsum(np.log1p(np.minimum(stake, _MOST) * gain))
    return bool(fortune.max(initial=0.0) >= math.log(1 / alpha))
