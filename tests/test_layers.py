"""Layers beyond dense ones: their units go as an expert would remove them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jprune

pytestmark = pytest.mark.usefixtures("x64")

R = np.random.default_rng(0)


class Layer(NamedTuple):
    """A function, its parameters, an argument, and how wide its pools are."""

    fn: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    args: tuple[Any, ...]
    pools: dict[str, int]  # a leaf's axis and the units that it is a part of


def graph_network(p: Any, nodes: Any, senders: Any, receivers: Any) -> Any:
    """Messages along edges, summed and maximal at each node."""
    h = jax.nn.relu(nodes @ p["in"])
    edges = jax.nn.relu(h[senders] @ p["send"] + h[receivers] @ p["receive"])
    total = jax.ops.segment_sum(edges, receivers, len(nodes))
    most = jax.ops.segment_max(edges, receivers, len(nodes))
    most = jnp.where(jnp.isfinite(most), most, 0)
    h = h + total @ p["update"] + most @ p["update_most"]
    return h.mean(0) @ p["out"]


def linear_recurrence(p: Any, x: Any) -> Any:
    """A diagonal complex state, all steps at once, as in S5 and the LRU."""
    decay = jnp.exp(-jnp.exp(p["rate"]) + 1j * p["angle"])
    u = (x @ p["b_real"]) + 1j * (x @ p["b_imaginary"])

    def combine(a: Any, b: Any) -> Any:
        return a[0] * b[0], a[1] * b[0] + b[1]

    steps = jnp.broadcast_to(decay, u.shape)
    _, h = lax.associative_scan(combine, (steps, u), axis=1)
    y = (h.real @ p["c_real"]) - (h.imag @ p["c_imaginary"])
    return jax.nn.relu(y + x @ p["skip"]) @ p["out"]


def both_ways(p: Any, x: Any, lengths: Any) -> Any:
    """Two recurrent nets, of which the last token of each example is taken."""

    def run(w: Any, u: Any, backward: bool) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = jnp.tanh(x @ w + h @ u)
            return h, h

        start = jnp.zeros((len(x), u.shape[0]))
        xs = jnp.swapaxes(x, 0, 1)
        return jnp.swapaxes(
            lax.scan(step, start, xs, reverse=backward)[1], 0, 1
        )

    there = run(p["w"], p["u"], False)
    back = run(p["w_back"], p["u_back"], True)
    last = jnp.take_along_axis(there, lengths[:, None, None] - 1, 1)[:, 0]
    return jnp.concatenate([last, back[:, 0]], -1) @ p["out"]


def cached(p: Any, x: Any, cache: Any, at: Any) -> Any:
    """One token of each example, behind what its cache holds already."""
    h = jax.nn.relu(x @ p["in"])
    value = h @ p["value"]
    cache = jnp.pad(cache @ p["value_old"], ((0, 0), (0, 1), (0, 0)))
    cache = jax.vmap(
        lambda c, v, i: lax.dynamic_update_slice(c, v[None], (i, 0))
    )(cache, value, at)
    weights = jax.nn.softmax(x @ p["query"], -1)
    return jnp.einsum("bt,btd->bd", weights, cache) @ p["out"]


def experts(p: Any, x: Any) -> Any:
    """Tokens sorted by their expert, none dropped."""
    gate = jax.nn.softmax(x @ p["gate"])
    chosen = jnp.argmax(gate, -1)
    order = jnp.argsort(chosen)
    sizes = jnp.bincount(chosen, length=3)
    h = lax.ragged_dot(x[order], p["up"], sizes)
    y = lax.ragged_dot(jax.nn.relu(h), p["down"], sizes)
    back = jnp.zeros_like(y).at[order].set(y)
    return (back * gate.max(-1, keepdims=True)) @ p["out"]


LAYERS = {
    "graph network": Layer(
        graph_network,
        {
            "in": (5, 8),
            "send": (8, 10),
            "receive": (8, 10),
            "update": (10, 8),
            "update_most": (10, 8),
            "out": (8, 3),
        },
        (
            R.normal(size=(6, 5)),
            np.array([0, 1, 2, 3, 4, 0]),
            np.array([1, 2, 0, 0, 2, 5]),
        ),
        {"in[1]": 8, "send[1]": 10},
    ),
    "linear recurrence": Layer(
        linear_recurrence,
        {
            "rate": (8,),
            "angle": (8,),
            "b_real": (4, 8),
            "b_imaginary": (4, 8),
            "c_real": (8, 6),
            "c_imaginary": (8, 6),
            "skip": (4, 6),
            "out": (6, 3),
        },
        (R.normal(size=(2, 7, 4)),),
        {"b_real[1]": 8, "c_real[1]": 6},
    ),
    "both ways": Layer(
        both_ways,
        {
            "w": (4, 8),
            "u": (8, 8),
            "w_back": (4, 6),
            "u_back": (6, 6),
            "out": (14, 3),
        },
        (R.normal(size=(2, 5, 4)), np.array([3, 5])),
        {"w[1]": 8, "w_back[1]": 6},
    ),
    "a cache for each example": Layer(
        cached,
        {
            "in": (4, 8),
            "value": (8, 6),
            "value_old": (5, 6),
            "query": (4, 4),
            "out": (6, 3),
        },
        (
            R.normal(size=(2, 4)),
            R.normal(size=(2, 3, 5)),
            np.array([1, 3]),
        ),
        {"in[1]": 8, "value[1]": 6},
    ),
    "experts": Layer(
        experts,
        {"gate": (4, 3), "up": (3, 4, 8), "down": (3, 8, 6), "out": (6, 2)},
        (R.normal(size=(9, 4)),),
        {"up[2]": 8, "down[2]": 6},
    ),
}


@pytest.fixture
def x64() -> Iterator[None]:
    """Exact but for rounding."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.sweep(12)
def test_units_go_and_nothing_changes(name: str) -> None:
    fn, shapes, arrays, pools = LAYERS[name]
    args = tuple(map(jnp.asarray, arrays))
    rng = np.random.default_rng(1)
    params = {k: rng.normal(size=shape) for k, shape in shapes.items()}
    graph = jprune.trace_units(fn, params, *args)
    found = {
        f"{path}[{axis}]": pool.units.shape
        for pool in graph.pools
        for path, axis in pool.axes
    }
    wanted = {axis: (1, n) for axis, n in pools.items()}
    assert found == found | wanted, str(graph)
    masks = jprune.find_masks(params, 0.5, structure=jprune.units(graph))
    small = jprune.compact(fn, params, *args, masks=masks)
    for axis, n in pools.items():
        path, _, k = axis.rstrip("]").partition("[")
        assert small.params[path].shape[int(k)] == n // 2
    masked = jprune.apply_masks(params, masks)
    np.testing.assert_allclose(
        small.fn(small.params, *args),
        jax.jit(fn)(masked, *args),
        rtol=1e-10,
        atol=1e-12,
    )

    def loss(fn: Any) -> Any:
        return jax.jit(jax.grad(lambda p: jnp.sum(fn(p, *args) ** 2)))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9),
        small.take(loss(fn)(masked)),
        loss(small.fn)(small.params),
    )
