"""Bounds on what is lost: simulated, and against the likelihood itself."""

import math

import numpy as np
import pytest

from jprune.search.promise import _score, _wins, needed, promise

LIMIT = 1.6448536269514722  # of a normal number, one in twenty is above it


def broken(n: int, loss: float, differ: float, times: int = 20_000) -> float:
    """How often a loss just above one point passes for one below."""
    rng = np.random.default_rng(0)
    worse, better = (differ + loss) / 2, (differ - loss) / 2
    drawn = rng.multinomial(n, [worse, better, 1 - differ], times)[:, :2]
    cases, often = np.unique(drawn, axis=0, return_counts=True)
    wrong = [_score(b, c, n, 0.01) <= -LIMIT for b, c in cases]
    return float(often @ np.array(wrong) / times)


@pytest.mark.parametrize("n", [300, 450, 1000, 3000, 8000])
@pytest.mark.parametrize("more", [0.0, 0.004, 0.0202])
def test_a_promise_is_broken_in_at_most_six_percent(n, more):
    loss = 0.0101
    assert 0.01 < broken(n, loss, loss + more) <= 0.061


def test_a_bet_is_lost_in_at_most_five_percent():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        apart = rng.choice([1.0, -1.0, 0.0], 1500, p=[0.0151, 0.005, 0.9799])
        wrong += _wins(apart, 0.01, 0.05)
    assert wrong / 400 <= 0.05


def test_a_bet_is_won_where_nothing_is_lost():
    rng = np.random.default_rng(0)
    apart = rng.choice([0.5, -0.5, 0.0], 8000, p=[0.01, 0.01, 0.98])
    assert _wins(apart, 0.01, 0.05)
    assert not _wins(apart + 0.01, 0.01, 0.05)


@pytest.mark.parametrize(
    ("lost", "won", "n", "loss"),
    [(7, 3, 300, 0.01), (0, 4, 200, 0.05), (12, 0, 500, 0.01), (5, 5, 90, 0.1)],
)
def test_the_score_is_that_of_the_likeliest_share(lost, won, n, loss):
    """Tango's closed form against a search for the maximum."""
    shares = np.linspace(1e-9, 1 - loss - 1e-9, 2_000_001)[1:-1] / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        likely = lost * np.log(shares + loss) + (n - lost - won) * np.log(
            1 - 2 * shares - loss
        )
        if won:
            likely += won * np.log(shares)
    share = shares[np.argmax(likely)]
    variance = n * (2 * share + loss * (1 - loss))
    wanted = (lost - won - n * loss) / math.sqrt(variance)
    assert _score(lost, won, n, loss) == pytest.approx(wanted, abs=1e-3)


def test_how_many_samples_it_takes():
    z = LIMIT**2
    assert needed(0.01, 0.95, numbers=False) == math.ceil(z * 0.99 / 0.01)
    assert 400 <= needed(0.01, 0.95, numbers=False, differ=0.015) <= 550
    numbers = needed(0.05, 0.95, numbers=True)
    assert _wins(np.zeros(numbers), 0.05, 0.05)
    assert not _wins(np.zeros(numbers - 1), 0.05, 0.05)


def test_the_bound_is_where_the_test_turns():
    rng = np.random.default_rng(0)
    dense = rng.random(1000) < 0.97
    small = np.where(rng.random(1000) < 0.03, ~dense, dense)
    for name in ("outcomes", "numbers"):
        pair = [dense, small]
        if name == "numbers":
            pair = [x.astype(float) for x in pair]
        found = promise(*pair, tolerance=0.5, confidence=0.95)
        assert found.kept
        assert found.loss < found.bound < 0.1
        assert found.loss == pytest.approx(dense.mean() - small.mean())
        below, above = (
            promise(*pair, tolerance=found.bound + x, confidence=0.95).kept
            for x in (-1e-6, 1e-6)
        )
        assert above
        assert not below


def test_more_confidence_promises_less():
    dense = np.arange(500) < 480
    small = np.arange(500) < 478
    bounds = [
        promise(dense, small, tolerance=0.1, confidence=c).bound
        for c in (0.5, 0.9, 0.99)
    ]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1]
