"""Flax users need nothing extra: NNX, Linen, dataclasses, plain dicts."""

from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import jprune
from jprune.models import MLP


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.relu(self.first(x)))


@nnx.jit
def train_step(model: Any, optimizer: Any, x: jax.Array) -> None:
    grads = nnx.grad(lambda m: jnp.sum(m(x) ** 2))(model)
    optimizer.update(model, grads)


def test_nnx_optimizer() -> None:
    model = Net(nnx.Rngs(0))
    tx = optax.chain(optax.adam(1e-2), jprune.prune(0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(3):
        train_step(model, optimizer, jnp.ones((5, 3)))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    masks = jprune.get_masks(optimizer.opt_state)
    pruned = jprune.apply_masks(params, masks)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, params, pruned)))
    assert float(jprune.measure_sparsity(masks)) == 0.5
    assert int(jnp.sum(params["first"]["kernel"] == 0)) == 7
    assert jprune.summarize(params, masks).kept == 26 - 10


def test_nnx_boxes_are_seen_through() -> None:
    model = Net(nnx.Rngs(0))
    boxed = nnx.state(model, nnx.Param)
    masks = jprune.find_masks(boxed, 0.5, where="^second/kernel$")
    assert [m.shape for m in jax.tree.leaves(masks)] == [(4, 2)]
    pruned = jprune.apply_masks(boxed, masks)
    chex.assert_trees_all_equal_structs(pruned, boxed)
    optimizer = nnx.Optimizer(
        model,
        optax.chain(optax.sgd(0.1), jprune.keep_masks(masks)),
        wrt=nnx.Param,
    )
    train_step(model, optimizer, jnp.ones((5, 3)))
    assert int(jnp.sum(model.second.kernel[...] == 0)) == 4


def test_masks_in_the_state_that_nnx_makes_of_an_optimizer() -> None:
    model = Net(nnx.Rngs(0))
    tx = optax.chain(optax.adam(1e-2), jprune.prune(0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    train_step(model, optimizer, jnp.ones((5, 3)))
    wanted = jprune.get_masks(optimizer)
    state = nnx.state(optimizer)
    for held in (state, nnx.to_pure_dict(state), nnx.split(optimizer)[1]):
        masks = jprune.get_masks(held)
        assert float(jprune.measure_sparsity(masks)) == 0.5
        params = nnx.state(model, nnx.Param)
        ones = jax.tree.map(jnp.ones_like, params)
        chex.assert_trees_all_equal(
            jprune.apply_masks(ones, masks), jprune.apply_masks(ones, wanted)
        )
    with pytest.raises(ValueError, match="no pruner"):
        jprune.get_masks({"masks": {"kernel": jnp.ones((2, 2))}})


def test_masks_of_the_parameters_of_linen_variables() -> None:
    class Normed(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = linen.BatchNorm(use_running_average=True)(linen.Dense(4)(x))
            return linen.Dense(2)(x)

    variables = Normed().init(jax.random.key(0), jnp.ones((1, 3)))
    masks = jprune.find_masks(variables["params"], 0.5)
    pruned = jprune.apply_masks(variables, masks)
    chex.assert_trees_all_equal(
        pruned["params"], jprune.apply_masks(variables["params"], masks)
    )
    chex.assert_trees_all_equal(pruned["batch_stats"], variables["batch_stats"])


def test_masks_of_a_dict_for_a_dataclass_and_back() -> None:
    layer = Layer(jnp.ones((2, 2)), jnp.ones(2))
    masks: Any = {"kernel": jnp.eye(2, dtype=bool), "bias": None}
    pruned = jprune.apply_masks(layer, masks)
    np.testing.assert_array_equal(pruned.kernel, jnp.eye(2))
    back = jprune.apply_masks(
        vars(layer), Layer(masks["kernel"], optax.MaskedNode())
    )
    np.testing.assert_array_equal(back["kernel"], jnp.eye(2))
    with pytest.raises(ValueError, match="'kernl' fits no parameter"):
        jprune.apply_masks(layer, {"kernl": masks["kernel"]})


def test_read_masks_sees_through_boxes() -> None:
    model = Net(nnx.Rngs(0))
    model.first.kernel[...] = jnp.eye(3, 4)
    boxed = nnx.state(model, nnx.Param)
    masks = jprune.read_masks(boxed)
    chex.assert_trees_all_equal_structs(jprune.apply_masks(boxed, masks), boxed)
    (kept, dense) = (m for m in jax.tree.leaves(masks))
    np.testing.assert_array_equal(kept, jnp.eye(3, 4))
    assert dense.all()
    assert jprune.summarize(boxed).kept == 3 + 4 + 8 + 2


def test_linen_train_state() -> None:
    model = MLP((5, 2))
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    tx = optax.chain(optax.adam(1e-2), jprune.prune(0.4))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state: TrainState) -> TrainState:
        def loss(params: Any) -> jax.Array:
            out = state.apply_fn({"params": params}, jnp.ones((4, 3)))
            return jnp.sum(out**2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    state = step(step(state))
    masks = jprune.get_masks(state)
    assert int(jnp.sum(state.params["Dense_0"]["kernel"] == 0)) == 7
    assert int(jnp.sum(~masks["Dense_1"]["kernel"])) == 3


def test_linen_boxes() -> None:
    kernel = linen.with_partitioning(
        linen.initializers.lecun_normal(), (None, "x")
    )
    layer = linen.Dense(3, kernel_init=kernel)
    boxed = layer.init(jax.random.key(0), jnp.ones((1, 2)))
    tx = optax.chain(optax.sgd(0.1), jprune.prune(0.5, where="kernel$"))
    updates, state = tx.update(boxed, tx.init(boxed), boxed)
    chex.assert_trees_all_equal_structs(updates, boxed)
    masks = jprune.get_masks(state)
    assert masks["params"]["kernel"].dtype == bool
    landed = optax.apply_updates(boxed, updates)
    again = jprune.apply_masks(landed, masks)
    for a, b in zip(
        jax.tree.leaves(landed), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_nnx_optimizer_rewires() -> None:
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    tx = jprune.rigl(optax.adam(0.1), 0.5, fraction=0.5, every=1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    first = jprune.get_masks(optimizer.opt_state)
    x = jnp.linspace(-1, 1, 16).reshape(2, 8)
    for _ in range(3):
        grads = nnx.grad(lambda m: jnp.sum(jnp.sin(m(x))))(model)
        optimizer.update(model, grads)
    masks = jprune.get_masks(optimizer.opt_state)
    assert int(masks["kernel"].sum()) == 16
    assert np.any(masks["kernel"] != first["kernel"])
    assert not np.any(np.asarray(model.kernel[...])[~masks["kernel"]])


@flax.struct.dataclass
class Layer:
    kernel: Any
    bias: Any


@pytest.mark.parametrize(
    "params",
    [
        Layer(jnp.arange(1.0, 5).reshape(2, 2), jnp.ones(2)),
        {"kernel": jnp.arange(1.0, 5).reshape(2, 2), "bias": jnp.ones(2)},
        [jnp.arange(1.0, 5).reshape(2, 2), None],
        flax.core.freeze({"w": jnp.arange(1.0, 5).reshape(2, 2)}),
    ],
)
def test_any_container(params: Any) -> None:
    tx = optax.chain(optax.sgd(0.0), jprune.prune(0.5))
    updates, state = tx.update(params, tx.init(params), params)
    landed = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal_structs(landed, params)
    kernel = next(x for x in jax.tree.leaves(landed) if x.ndim == 2)
    np.testing.assert_array_equal(kernel, [[0, 0], [3, 4]])
    masks = jprune.get_masks(state)
    np.testing.assert_array_equal(jax.tree.leaves(masks)[0], kernel != 0)


@pytest.mark.slow
def test_mlp_from_params() -> None:
    model = MLP((7, 5, 2), activation=linen.tanh)
    variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    again = MLP.from_params(variables["params"], activation=linen.tanh)
    assert again.features == (7, 5, 2)
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    np.testing.assert_array_equal(
        model.apply(variables, x), again.apply(variables, x)
    )
    with pytest.raises(ValueError, match="expects layers Dense_0"):
        MLP.from_params({"Conv_0": {}})
    broken = dict(variables["params"], Dense_1={"kernel": jnp.ones((9, 5))})
    with pytest.raises(ValueError, match="Dense_0 has 7 outputs"):
        MLP.from_params(broken)
