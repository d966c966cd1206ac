"""After compaction training goes on as that of the masked model."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jprune

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((12, 4, 4, 1)), jnp.float32)
Y = jnp.arange(12) % 3


def cross_entropy(logits: Any) -> Any:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, Y)
    return losses.mean()


def optimizer(graph: Any, of: Any = None) -> Any:
    """Half of the units of the first model go, at the second update."""
    structure = jprune.units(graph, of=of)
    pruner = jprune.prune(lambda count: 0.5 * (count > 0), structure=structure)
    return optax.chain(optax.sgd(0.1, momentum=0.9), pruner)


def assert_close(one: Any, other: Any) -> None:
    chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-5)


class Linen(nn.Module):
    channels: int = 6
    hidden: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(self.channels, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        x = nn.Dense(self.hidden, use_bias=False)(x.mean((1, 2)))
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        return nn.Dense(3)(x)


def trainer(net: Linen, tx: Any) -> Any:
    """Three steps: variables, state and the losses on the way."""

    def loss(params: Any, stats: Any) -> Any:
        variables = {"params": params, "batch_stats": stats}
        logits, stats = net.apply(
            variables, X, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits), stats

    @jax.jit
    def step(variables: Any, state: Any) -> Any:
        params, stats = variables["params"], variables["batch_stats"]
        slope = jax.value_and_grad(loss, has_aux=True)
        (now, stats), grads = slope(params, stats)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return {"params": params} | stats, state, now

    def train(variables: Any, state: Any) -> Any:
        losses = []
        for _ in range(3):
            variables, state, now = step(variables, state)
            losses.append(float(now))
        return variables, state, losses

    return train


@pytest.mark.slow
def test_linen_with_batch_norm_is_trained_on() -> None:
    """A module rebuilt from ``plan.sizes``, statistics and momentum taken."""
    net = Linen()
    variables = jax.jit(net.init)(jax.random.key(0), X)
    graph = jprune.trace_units(net.apply, variables, X, train=False)
    tx = optimizer(graph)
    train = trainer(net, tx)
    variables, state, _ = train(variables, tx.init(variables["params"]))

    masks = jprune.get_masks(state)
    small = jprune.compact(net.apply, variables, X, masks=masks, train=False)
    channels, hidden = small.plan.sizes.values()
    assert (channels, hidden) == (3, 4)
    less = Linen(channels, hidden)
    same = jprune.compare(small.fn, small.params, less.apply, small.params, X)
    assert same.error < 1e-5

    second = jprune.trace_units(less.apply, small.params, X, train=False)
    go_on = trainer(less, optimizer(second, of=graph))
    after, end, losses = go_on(small.params, small.take(state))
    masked, masked_end, expected = train(variables, state)
    assert_close(losses, expected)
    assert losses[-1] < losses[0]
    assert_close(after, small.take(masked))
    assert_close(end[0], small.take(masked_end[0]))
    assert int(end[1].count) == 6
    means = (
        x["batch_stats"]["BatchNorm_0"]["mean"] for x in (after, small.params)
    )
    assert not np.allclose(*means), "statistics are those of the fine-tuning"


class Nnx(nnx.Module):
    def __init__(self, channels: int = 6, hidden: int = 8) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, channels, (3, 3), use_bias=False, rngs=rngs)
        self.first = nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(channels, hidden, use_bias=False, rngs=rngs)
        self.second = nnx.BatchNorm(hidden, momentum=0.9, rngs=rngs)
        self.out = nnx.Linear(hidden, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.first(self.conv(x)))
        x = nnx.relu(self.second(self.dense(x.mean((1, 2)))))
        return self.out(x)


def evaluated(net: Nnx) -> tuple[Any, Any]:
    """A function of the state, with the statistics that are in it."""
    definition, state = nnx.split(net)

    def fn(state: Any, x: jax.Array) -> jax.Array:
        net = nnx.merge(definition, state)
        net.eval()
        return net(x)

    return fn, state


@nnx.jit
def step(net: Nnx, optimizer: Any) -> Any:
    now, grads = nnx.value_and_grad(lambda net: cross_entropy(net(X)))(net)
    optimizer.update(net, grads)
    return now


def train(net: Nnx, optimizer: Any) -> list[float]:
    net.train()
    return [float(step(net, optimizer)) for _ in range(3)]


@pytest.mark.slow
def test_nnx_with_batch_norm_is_trained_on() -> None:
    """The same; the optimizer is one of NNX, whose state is taken."""
    net = nnx.jit(Nnx)()
    fn, state = evaluated(net)
    graph = jprune.trace_units(fn, state, X)
    steps = nnx.Optimizer(net, optimizer(graph), wrt=nnx.Param)
    train(net, steps)

    fn, state = evaluated(net)
    masks = jprune.get_masks(nnx.state(steps))
    small = jprune.compact(fn, state, X, masks=masks)
    channels, hidden = small.plan.sizes.values()
    assert (channels, hidden) == (3, 4)
    less = nnx.eval_shape(lambda: Nnx(channels, hidden))
    nnx.update(less, small.params)
    rebuilt, params = evaluated(less)
    same = jprune.compare(small.fn, small.params, rebuilt, params, X)
    assert same.error < 1e-5

    second = jprune.trace_units(rebuilt, params, X)
    going_on = optimizer(second, of=graph)
    less_steps = nnx.Optimizer(less, going_on, wrt=nnx.Param)
    nnx.update(less_steps, small.take(nnx.state(steps)))
    losses = train(less, less_steps)
    assert_close(losses, train(net, steps))
    assert losses[-1] < losses[0]
    expected = small.take(nnx.state(net))
    assert_close(nnx.to_pure_dict(nnx.state(less)), nnx.to_pure_dict(expected))
    expected = small.take(nnx.state(steps))
    assert_close(
        nnx.to_pure_dict(nnx.state(less_steps)), nnx.to_pure_dict(expected)
    )
