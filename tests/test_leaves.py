"""Leaves without weights, and of every precision, in all that is public."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocations, criteria, projections, structures

DTYPES = [
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3b11fnuz",
    "float16",
    "bfloat16",
    "float64",
]


def make_params(dtype: Any) -> Any:
    values = jnp.cos(jnp.arange(32.0)).reshape(8, 4)
    return {
        "no inputs": jnp.zeros((0, 4), dtype),
        "no outputs": jnp.zeros((4, 0), dtype),
        "kernel": values.astype(dtype),
    }


STRUCTURES = {
    "unstructured": structures.unstructured(),
    "stacked": structures.unstructured(batch_axis=0),
    "fan_in": structures.fan_in(),
    "group": structures.group(2),
    "block": structures.block((2, 2), pooling="mean"),
    "n_m": structures.n_m(2, 4),
    "channel": structures.channel(),
    "channel of inputs": structures.channel(0, pooling="max"),
    "channel of a stack": structures.channel(batch_axis=0),
}
ALLOCATIONS = {
    "uniform": allocations.uniform(),
    "erdos_renyi": allocations.erdos_renyi(),
    "ranking": allocations.global_ranking(),
    "l2": allocations.global_ranking("l2"),
    "lamp": allocations.global_ranking("lamp", 0.1),
}
CRITERIA = {
    "magnitude": criteria.magnitude(),
    "random": criteria.random(),
    "gradient": criteria.gradient(),
    "taylor": criteria.taylor("squared"),
    "movement": criteria.movement(),
    "fisher": criteria.fisher(),
}


COMBINATIONS = [
    (structure, allocation)
    for structure in STRUCTURES
    for allocation in ALLOCATIONS
    if STRUCTURES[structure].kept is None or not ALLOCATIONS[allocation].joint
]


@pytest.mark.parametrize("dtype", ["float32", "float8_e4m3fn"])
@pytest.mark.parametrize(("structure", "allocation"), COMBINATIONS)
def test_every_structure_and_allocation(
    structure: str, allocation: str, dtype: str
) -> None:
    """As programs, which is where they would fail."""
    shape, rule = STRUCTURES[structure], ALLOCATIONS[allocation]

    def find(params: Any, masks: Any) -> Any:
        return jprune.find_masks(
            params, 0.5, structure=shape, allocation=rule, masks=masks
        )

    params = make_params(jnp.dtype(dtype))
    masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    found = jax.eval_shape(find, params, masks)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("dtype", ["float32", "float8_e5m2"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion(criterion: str, dtype: str) -> None:
    params = make_params(jnp.dtype(dtype))
    found = jax.eval_shape(
        lambda params: jprune.find_masks(
            params,
            0.5,
            criterion=CRITERIA[criterion],
            grads=params,
            key=0,
            structure=structures.channel(),
        ),
        params,
    )
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "keep_masks": lambda masks: jprune.keep_masks(masks),
    "prune": lambda _: jprune.prune(0.5),
    "rewire": lambda _: jprune.rigl(optax.identity(), 0.5, stop=9),
    "frobenius_ball": lambda _: jprune.project_frobenius_ball(0.1),
    "soft_threshold": lambda _: jprune.project(
        projections.soft_threshold(0.1), every=2
    ),
    "group_soft_threshold": lambda _: jprune.project(
        projections.group_soft_threshold(0.1)
    ),
    "spectral_ball": lambda _: jprune.project(projections.spectral_ball(0.1)),
    "nuclear": lambda _: jprune.project(projections.nuclear(0.1)),
    "l0_ball": lambda _: jprune.project(projections.l0_ball(5)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(x, marks=[] if x == "float8_e4m3fn" else pytest.mark.slow)
        for x in DTYPES
    ],
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform(name: str, dtype: str) -> None:
    """Updates keep their dtype, and what is masked is 0."""
    with jax.enable_x64(dtype == "float64"):
        params = make_params(jnp.dtype(dtype))
        masks = jax.tree.map(
            lambda p: jnp.abs(p) > jnp.ones((), p.dtype) / 2, params
        )
        tx = TRANSFORMS[name](masks)
        moved, state = tx.update(params, tx.init(params), params)
        landed = optax.apply_updates(params, moved)
        for x, u, p in zip(
            *map(jax.tree.leaves, (landed, moved, params)), strict=True
        ):
            assert x.dtype == u.dtype == p.dtype
        if name in ("keep_masks", "prune", "rewire"):
            kept = np.asarray(jprune.get_masks(state)["kernel"])
            assert 0 < kept.sum() < 32
            assert not np.asarray(landed["kernel"], np.float32)[~kept].any()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_masks_of_eight_bits(dtype: str) -> None:
    params = make_params(jnp.dtype(dtype))
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    masks = jprune.find_masks(params, 0.5)
    jax.tree.map(
        np.testing.assert_array_equal, masks, jprune.find_masks(wide, 0.5)
    )
    pruned = jprune.straight_through(params, masks, decay=0.1)
    jax.tree.map(
        np.testing.assert_array_equal, pruned, jprune.apply_masks(params, masks)
    )
    assert jprune.summarize(params, masks).kept == 16
    assert jprune.measure_sparsity(masks) == 0.5


def test_floats_without_a_zero_are_no_weights() -> None:
    """Scales of blocks: a masked one could not be 0."""
    scales = jnp.ones((4, 4), jnp.float8_e8m0fnu)
    params = {"kernel": jnp.ones((4, 4)), "scales": scales}
    assert jprune.find_masks(params, 0.5)["scales"] == optax.MaskedNode()
    with pytest.raises(ValueError, match="'scales' must be a real floating"):
        jprune.find_masks(params, 0.5, where="scales")
