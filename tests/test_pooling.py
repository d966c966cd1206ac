"""Scores of units, against float64, over the whole range of float32."""

from typing import Any

import hypothesis
import hypothesis.extra.numpy as hypothesis_numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import allocations, criteria, structures
from jprune.choosing.families import Method, unit_scores

LIMITS = np.finfo(np.float32)
TINY, MOST = float(LIMITS.tiny), float(LIMITS.max)
ARRAYS = hypothesis_numpy.arrays(
    np.float32,
    (4, 3),  # three units of four weights
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
WIDE = np.geomspace(1e-37, 1e38, 12, dtype=np.float32).reshape(4, 3)


def pooled(x: np.ndarray, pooling: str) -> np.ndarray:
    """The score of each column, in float64."""
    x = x.astype(np.float64)
    if pooling == "l2":
        return np.linalg.norm(x, axis=0)
    if pooling == "l1":
        return np.abs(x).sum(0)
    return x.mean(0) if pooling == "mean" else x.max(0)


def ranked(criterion: criteria.Criterion, pooling: str) -> Any:
    """Scores of units as they are ranked."""
    structure = structures.channel(pooling=pooling)
    method = Method("find_masks", criterion, structure, allocations.uniform())

    def scores(w: jax.Array, g: jax.Array) -> jax.Array:
        state = criterion.update(g, criterion.init(w), w)
        return unit_scores(method, w, state, g, None)[0][0][0, 0]

    return jax.jit(scores)


POOLINGS = ("l2", "l1", "mean", "max")
VALUES = {name: ranked(criteria.custom(lambda w: w), name) for name in POOLINGS}
MOVEMENT = {name: ranked(criteria.movement(), name) for name in POOLINGS}


@pytest.mark.parametrize("pooling", POOLINGS)
@hypothesis.given(x=ARRAYS)
@hypothesis.example(x=WIDE)
@hypothesis.example(x=WIDE.T.reshape(4, 3))
@hypothesis.example(x=np.full((4, 3), MOST, np.float32))
@hypothesis.settings(deadline=None, max_examples=60)
def test_pooling_over_the_whole_range(pooling: str, x: np.ndarray) -> None:
    """No norm underflows, and only what is no float is infinite."""
    wanted = pooled(x, pooling)
    found = np.asarray(VALUES[pooling](x, x), np.float64)
    # Subnormal numbers may be 0; a mean cancels what is larger.
    noise = 4 * TINY + 1e-6 * abs(x.astype(np.float64)).max(0)
    atol = noise if pooling == "mean" else 4 * TINY
    fits = abs(wanted) * (1 + 1e-6) <= MOST
    error = abs(np.where(fits, found, 0) - np.where(fits, wanted, 0))
    assert (error <= atol + 1e-6 * abs(wanted)).all()
    assert (found[wanted * (1 - 1e-6) > MOST] == np.inf).all()


@pytest.mark.parametrize("pooling", ["l2", "l1"])
@hypothesis.given(x=ARRAYS.filter(lambda x: abs(x).max() < MOST / 8))
@hypothesis.example(x=WIDE / 10 * np.array([1, -1, 1], np.float32))
@hypothesis.settings(deadline=None, max_examples=60)
def test_signed_pooling_over_the_whole_range(
    pooling: str, x: np.ndarray
) -> None:
    gain, loss = (pooled(np.maximum(s * x, 0), pooling) for s in (1, -1))
    found = np.asarray(MOVEMENT[pooling](np.ones_like(x), -x), np.float64)
    atol = 8 * TINY + 1e-6 * (gain + loss)
    assert (abs(found - (gain - loss)) <= atol).all()


@pytest.mark.parametrize("pooling", ["l2", "l1", "mean", "max"])
@pytest.mark.parametrize(
    "criterion",
    [criteria.fisher(), criteria.taylor(), criteria.taylor("squared")],
)
@pytest.mark.parametrize("scale", [1e-14, 1.0])
def test_units_of_very_different_sizes(
    pooling: str, criterion: criteria.Criterion, scale: float
) -> None:
    """Squares, and their squares, of gradients that are 1e-12 of others."""
    row = jnp.array([3e-12, 1e-12, 2e-12, 1.0]) * scale
    if "fisher" in repr(criterion) and scale < 1:
        row = row * 1e8  # (w g) ** 2 itself must be a float
    masks = jprune.find_masks(
        jnp.ones((4, 4)),
        0.5,
        grads=jnp.tile(row, (4, 1)),
        criterion=criterion,
        structure=structures.channel(pooling=pooling),
    )
    assert masks[0].tolist() == [True, False, False, True]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_is_not_finite_is_seen(pooling: str) -> None:
    x = jnp.array([[1.0, 1, jnp.nan], [2, jnp.inf, 1e-30]] * 2)
    found = VALUES[pooling](x, x)
    assert jnp.isfinite(found[0])
    assert found[1] == jnp.inf
    assert jnp.isnan(found[2])
