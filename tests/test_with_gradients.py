"""The raw gradient arrives as ``grad=``, however the chain is composed."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jprune
from jprune import allocations, criteria

RNG = np.random.default_rng(1)
PARAMS = {
    "a": {
        "kernel": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32),
        "bias": jnp.ones(6),
    },
    "b": {"kernel": jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)},
}
GRADS = jax.tree.map(lambda p: jnp.sin(5 * p), PARAMS)
# A part of `optax.partition` is divided by itself: here as it is in the whole.
BY_TAYLOR: Any = {
    "criterion": criteria.taylor(),
    "allocation": allocations.uniform(),
}


def masks_of(grads: Any) -> Any:
    return jprune.find_masks(PARAMS, 0.5, grads=grads, **BY_TAYLOR)


WANTED = masks_of(GRADS)
SIGNS = masks_of(jax.tree.map(jnp.sign, GRADS))  # what Adam's first update is


def chain() -> Any:
    return optax.chain(optax.adam(1e-2), jprune.prune(0.5, **BY_TAYLOR))


KERNELS = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
COMPOSITIONS = {
    "outside": lambda: jprune.with_gradients(chain()),
    "in masked": lambda: optax.masked(jprune.with_gradients(chain()), KERNELS),
    "around masked": lambda: jprune.with_gradients(
        optax.masked(chain(), KERNELS)
    ),
    "around partition": lambda: jprune.with_gradients(
        optax.partition(
            {"a": chain(), "b": chain()}, lambda params: {"a": "a", "b": "b"}
        )
    ),
    "in partition": lambda: optax.partition(
        {"a": jprune.with_gradients(chain()), "b": chain()},
        lambda params: {"a": "a", "b": "a"},
    ),
    "in MultiSteps": lambda: optax.MultiSteps(
        jprune.with_gradients(chain()), every_k_schedule=1
    ),
    "around inject_hyperparams": lambda: jprune.with_gradients(
        optax.inject_hyperparams(
            lambda sparsity: jprune.prune(sparsity, **BY_TAYLOR)
        )(0.5)
    ),
    "in apply_if_finite": lambda: optax.apply_if_finite(
        jprune.with_gradients(chain()), 3
    ),
}


QUICK = ("in masked", "around partition", "in MultiSteps")


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "composition",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in COMPOSITIONS
    ],
)
def test_the_gradient_arrives(composition: str) -> None:
    tx = COMPOSITIONS[composition]()
    updates, state = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    masks = jprune.get_masks(state)
    for part in ("a", "b"):
        np.testing.assert_array_equal(
            masks[part]["kernel"], WANTED[part]["kernel"]
        )
        assert not np.array_equal(masks[part]["kernel"], SIGNS[part]["kernel"])
    landed = optax.apply_updates(PARAMS, updates)
    assert not np.any(landed["b"]["kernel"][~masks["b"]["kernel"]])


@pytest.mark.parametrize("outside", [True, False])
def test_an_explicit_gradient_wins(outside: bool) -> None:
    tx = jprune.with_gradients(chain()) if outside else chain()
    other = jax.tree.map(jnp.cos, GRADS)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS, grad=other)
    chex.assert_trees_all_equal(jprune.get_masks(state), masks_of(other))


def test_multi_steps_accumulates() -> None:
    tx = optax.MultiSteps(jprune.with_gradients(chain()), every_k_schedule=3)
    state = tx.init(PARAMS)
    parts = [jax.tree.map(lambda g: jnp.cos(g * k), GRADS) for k in range(3)]  # noqa: B023
    update = jax.jit(tx.update)
    for part in parts:
        _, state = update(part, state, PARAMS)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *parts)
    chex.assert_trees_all_equal(jprune.get_masks(state), masks_of(mean))


def test_state_and_updates_are_those_of_the_chain() -> None:
    wrapped, bare = jprune.with_gradients(optax.adam(0.1)), optax.adam(0.1)
    chex.assert_trees_all_equal(wrapped.init(PARAMS), bare.init(PARAMS))
    chex.assert_trees_all_equal(
        wrapped.update(GRADS, wrapped.init(PARAMS), PARAMS, value=1.0),
        bare.update(GRADS, bare.init(PARAMS), PARAMS),
    )


@pytest.mark.parametrize(
    "criterion",
    [
        criteria.movement(),
        pytest.param(criteria.taylor(), marks=pytest.mark.slow),
    ],
)
def test_nnx_optimizer(criterion: Any) -> None:
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    tx = optax.chain(
        optax.adam(1e-2), jprune.prune(0.5, criterion=criterion, every=2)
    )
    optimizer = nnx.Optimizer(model, jprune.with_gradients(tx), wrt=nnx.Param)
    before = nnx.as_pure(nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        grads = nnx.grad(lambda m: jnp.sum(jnp.sin(m(jnp.eye(4)))))(model)
        optimizer.update(model, grads)
        return nnx.as_pure(grads)

    grads = step(model, optimizer)
    masks = jprune.get_masks(optimizer.opt_state)
    wanted = jprune.find_masks(before, 0.5, criterion=criterion, grads=grads)
    chex.assert_trees_all_equal(masks["kernel"], wanted["kernel"])
    step(model, optimizer)
    assert not np.any(model.kernel[...][~masks["kernel"]])


@pytest.mark.parametrize(
    "criterion",
    [
        criteria.fisher(),
        pytest.param(criteria.taylor(), marks=pytest.mark.slow),
    ],
)
def test_linen_boxes(criterion: Any) -> None:
    kernel = linen.with_partitioning(
        linen.initializers.lecun_normal(), (None, "x")
    )
    layer = linen.Dense(3, kernel_init=kernel)
    boxed = layer.init(jax.random.key(0), jnp.ones((1, 4)))
    grads = jax.tree.map(jnp.cos, boxed)
    tx = jprune.with_gradients(jprune.prune(0.5, criterion=criterion))
    _, state = tx.update(grads, tx.init(boxed), boxed)
    plain, plain_grads = linen.unbox(boxed), linen.unbox(grads)
    wanted = jprune.find_masks(
        plain, 0.5, criterion=criterion, grads=plain_grads
    )
    chex.assert_trees_all_equal(jprune.get_masks(state), wanted)
    given = jprune.find_masks(
        boxed, 0.5, criterion=criterion, grads=plain_grads
    )
    chex.assert_trees_all_equal(linen.unbox(given), wanted)


def test_a_gradient_that_does_not_fit() -> None:
    tx = jprune.prune(0.5, criterion=criteria.taylor())
    state = tx.init(PARAMS)
    kernel = GRADS["a"]["kernel"]
    for wrong in (None, kernel.T, kernel > 0, optax.MaskedNode()):
        grads = {**GRADS, "a": {"kernel": wrong, "bias": None}}
        with pytest.raises(ValueError, match=r"`grad=`: the gradient of 'a/k"):
            tx.update(GRADS, state, PARAMS, grad=grads)
    with pytest.raises(ValueError, match=r"have the leaf 'b/kernel'"):
        tx.update(GRADS, state, PARAMS, grad={"a": GRADS["a"]})
