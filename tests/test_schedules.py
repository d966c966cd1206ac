"""Schedules of sparsity: refused where they are written, or defined."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocations, criteria

PARAMS = {
    "a": jnp.arange(1.0, 16).reshape(3, 5),
    "b": -jnp.arange(1.0, 13).reshape(3, 4),
}

WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "in percent": (
        optax.polynomial_schedule(0.0, 90.0, 3, 8),
        r"\[0, 1\], got 29.7\d* at count 1\.",
    ),
    "in percent, and slow": (
        optax.linear_schedule(0.0, 90.0, 10**6, 10**5),
        r"\[0, 1\], got 81.0 at count 1000000\.",
    ),
    "an exponential": (lambda c: 0.1 * 2.0 ** (c / 10), "at count 100"),
    "not a number": (lambda c: 0.5 * jnp.log(c), "got -inf at count 0"),
    "nan": (lambda c: c / c, "got nan at count 0"),
    "nan later": (
        lambda c: 0.1 * np.sqrt(9 - np.minimum(c, 10)),
        "got nan at count 10",
    ),
    "python floats": (lambda c: float(int(c)) / 50, "got 2.0 at count 100"),
    "a vector": (lambda c: jnp.ones(2) * c, "must be a number"),
    "words": (lambda c: "half", "must be a number, got 'half'"),
    "no count": (lambda: 0.5, "with an int32 array failed"),
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", WRONG)
def test_refused_where_it_is_written(name: str) -> None:
    schedule, message = WRONG[name]
    with pytest.raises(ValueError, match=r"^`prune\(sparsity=.*" + message):
        jprune.prune(schedule)
    with pytest.raises(ValueError, match=r"^`rewire\(fraction=.*" + message):
        jprune.rigl(optax.sgd(0.1), 0.5, fraction=schedule)


RIGHT: dict[str, Callable[[Any], Any]] = {
    "methods of an array": lambda c: (
        0.9 * jnp.minimum(c.astype(jnp.float32) / 10, 1.0)
    ),
    "numpy": lambda c: float(np.interp(int(c), [0, 1000], [0.1, 0.9])),
    "branches": lambda c: 0.0 if c < 5 else 0.5,
    "a table that ends": lambda c: [0.1, 0.2, 0.5][int(c)],
    "whole numbers": lambda c: jnp.where(c < 10, 0, 1),
    "past 1 by a rounding": lambda c: jnp.float32(1) + 2e-7,
    "in 16 bits": lambda c: jnp.minimum(c / 10, 0.9).astype(jnp.bfloat16),
}


@pytest.mark.parametrize("name", RIGHT)
def test_schedules_of_every_kind(name: str) -> None:
    jprune.prune(RIGHT[name])
    jprune.rigl(optax.sgd(0.1), 0.5, fraction=RIGHT[name])


def test_a_schedule_of_traced_values_passes() -> None:
    @jax.jit
    def kept(end: Any) -> Any:
        tx = jprune.prune(optax.linear_schedule(0.0, end, 10))
        return tx.init(PARAMS).masks

    assert all(mask.all() for mask in jax.tree.leaves(kept(90.0)))


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("bad", [90.0, -0.5, np.nan])
def test_what_no_probe_sees_changes_nothing(bad: float) -> None:
    """Neither are all weights destroyed nor do those that are pruned return."""
    tx = jprune.prune(lambda c: jnp.where(c == 3, bad, 0.4))
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for count, zeros in ((3, 0), (0, 11), (3, 11)):
        state = state._replace(count=jnp.int32(count))
        _, state = update(PARAMS, state, PARAMS)
        masks = jax.tree.leaves(state.masks)
        assert sum(int(jnp.sum(~mask)) for mask in masks) == zeros


@pytest.mark.slow
@pytest.mark.parametrize("bad", [90.0, np.nan])
def test_a_traced_sparsity_that_is_none_prunes_nothing(bad: float) -> None:
    find = jax.jit(jprune.find_masks)
    assert all(m.all() for m in jax.tree.leaves(find(PARAMS, bad)))
    masks = jprune.find_masks(PARAMS, 0.4)
    again = jax.jit(lambda s: jprune.find_masks(PARAMS, s, masks=masks))(bad)
    jax.tree.map(np.testing.assert_array_equal, again, masks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "bad"), [("sparsity", 90.0), ("fraction", np.nan)]
)
def test_nothing_is_rewired_by_what_is_no_fraction(
    what: str, bad: float
) -> None:
    def step(number: Any) -> Any:
        numbers = {"sparsity": 0.5, "fraction": 0.5, what: number}
        tx = jprune.rigl(optax.sgd(0.1), every=1, **numbers)
        start = jprune.rigl(optax.sgd(0.1), 0.5, fraction=0.5).init(PARAMS)
        return start.masks, tx.update(PARAMS, start, PARAMS)[1].masks

    before, after = jax.jit(step)(bad)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    before, after = jax.jit(step)(0.5)
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), before, after)
    assert any(changed.values())


def test_a_number_that_comes_too_late_to_be_probed_is_refused() -> None:
    """It has a value, so that the update can say so."""
    tx = jprune.prune(lambda c: 90.0 if c == 3 else 0.5)
    state = tx.init(PARAMS)._replace(count=jnp.int32(3))
    with pytest.raises(ValueError, match=r"\[0, 1\], got 90.0 at count 3"):
        tx.update(PARAMS, state, PARAMS)


@pytest.mark.parametrize(
    "allocation", [allocations.uniform(), allocations.global_ranking()]
)
def test_a_loop_without_jit_compiles_once(allocation: Any) -> None:
    """And its counts are those of ``find_masks`` with the number."""
    traced = []

    def score(params: Any) -> Any:
        traced.append(1)
        return jax.tree.map(jnp.abs, params)

    def schedule(count: Any) -> float:
        return float(np.interp(int(count), [0, 3], [0.1, 0.7]))  # .3, .5, .7

    tx = jprune.prune(
        schedule, criterion=criteria.custom(score), allocation=allocation
    )
    state, before = tx.init(PARAMS), 0
    for count in range(4):
        _, state = tx.update(PARAMS, state, PARAMS)
        wanted = jprune.find_masks(
            PARAMS, schedule(count), allocation=allocation
        )
        jax.tree.map(np.testing.assert_array_equal, state.masks, wanted)
        before = before or len(traced)
    assert len(traced) == before


def test_rewiring_without_jit_compiles_once() -> None:
    traced = []

    def score(params: Any) -> Any:
        traced.append(1)
        return jax.tree.map(jnp.abs, params)

    tx = jprune.rigl(
        optax.sgd(0.1),
        0.4,
        drop=criteria.custom(score),
        fraction=lambda c: min(0.1 + 0.2 * int(c), 1.0),
        every=1,
    )
    state, counts, before = tx.init(PARAMS), [], 0
    for _ in range(4):
        _, state = tx.update(PARAMS, state, PARAMS)
        counts.append(int(sum(m.sum() for m in jax.tree.leaves(state.masks))))
        before = before or len(traced)
    assert len(traced) == before
    assert counts == [16] * 4
