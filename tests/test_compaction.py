"""Dead units removed: the same function, proved and measured in float64."""

import functools
import json
import tracemalloc

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compaction_models import MODELS, Model, random_model
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jprune
from jprune.compaction import Plan
from jprune.compaction.removal import rewrite as rewrite
from jprune.jaxprs import versions as _jax
from jprune.models import MLP


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


SLOW = (
    "convolutional",
    "gpt",
    "mlp",
    "residual",
    "resnet18",
)  # compiling them takes long


def random_tree(tree, seed=0):
    """Numbers of both signs and none near 0; variances are positive."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        size = abs(rng.standard_normal(x.shape)) + 0.1
        sign = (-1) ** rng.integers(2, size=x.shape)
        variance = jax.tree_util.keystr(path).endswith("['var']")
        return jnp.asarray(size if variance else size * sign)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def sizes(params):
    return jax.tree.map(jnp.shape, params)


def relative(certificate):
    return certificate.error / max(certificate.scale, 1)


def perceptron(seed=0):
    shapes = {"w": (4, 8), "b": (8,), "v": (8, 3), "c": (3,)}
    zeros = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    return random_tree(zeros, seed)


DEAD = np.array([1, 4, 5])
X = np.random.default_rng(1).standard_normal((6, 4))


def kill(params, names="wbv"):
    spots = {"w": (slice(None), DEAD), "b": (DEAD,), "v": (DEAD,)}
    return params | {k: params[k].at[spots[k]].set(0) for k in names}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in SLOW else ())
        for n in MODELS
    ],
)
def test_models_lose_units_and_compute_the_same(name):
    fn, params, args = MODELS[name]()
    params = random_tree(params)
    graph = jprune.trace_units(fn, params, *args)
    masks = jprune.find_masks(params, 0.4, structure=jprune.units(graph))
    small = jprune.compact(fn, params, *args, masks=masks)
    assert relative(small.certify(*args, seeds=1)) < 1e-12
    assert [leaf.size for leaf in jax.tree.leaves(small.params)] == [
        max(int(mask.sum()), 1)
        if not isinstance(mask, optax.MaskedNode)
        else leaf.size
        for leaf, mask in zip(
            jax.tree.leaves(params),
            jax.tree.leaves(
                masks, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
            ),
            strict=True,
        )
    ]


def case(fn, names="w"):
    return fn, names


# Removing the three dead columns of w would be wrong in each of these.
FROZEN = {
    "two-pass variance": case(lambda p, x: (x @ p["w"]).var(-1)),
    "softmax": case(lambda p, x: jax.nn.softmax(x @ p["w"]) @ p["v"]),
    "logsumexp": case(lambda p, x: jax.nn.logsumexp(x @ p["w"], -1)),
    "max": case(lambda p, x: (-jnp.abs(x @ p["w"])).max(-1)),
    "min": case(lambda p, x: jnp.abs(x @ p["w"]).min(-1)),
    "prod": case(lambda p, x: (x @ p["w"]).prod(-1)),
    "argmax": case(lambda p, x: (x @ p["w"]).argmax(-1)),
    "sort": case(lambda p, x: jnp.sort(x @ p["w"]) @ p["v"]),
    "top_k": case(lambda p, x: lax.top_k(x @ p["w"], 3)[0]),
    "argmin": case(lambda p, x: jnp.abs(x @ p["w"]).argmin(-1)),
    "any": case(lambda p, x: (x @ p["w"] == 0).any(-1)),
    "cumsum": case(lambda p, x: jnp.cumsum(x @ p["w"], 1) @ p["v"]),
    "cumprod": case(lambda p, x: lax.cumprod(1 + x @ p["w"], 1) @ p["v"]),
    "cummax": case(lambda p, x: lax.cummax(x @ p["w"], 1) @ p["v"]),
    "cummin": case(lambda p, x: lax.cummin(x @ p["w"], 1) @ p["v"]),
    "cumlogsumexp": case(
        lambda p, x: lax.cumlogsumexp(x @ p["w"], axis=1) @ p["v"]
    ),
    "window": case(
        lambda p, x: lax.reduce_window(
            x @ p["w"], -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"
        ).sum(-1)
    ),
    "looked up": case(lambda p, x: p["w"].T[6 + (x[:, 0] > 0).astype(int)]),
    "dynamic slice": case(
        lambda p, x: lax.dynamic_slice_in_dim(
            x @ p["w"], (x[0, 0] > 9).astype(int), 4, 1
        ).sum(-1)
    ),
    "dynamic update": case(
        lambda p, x: lax.dynamic_update_slice_in_dim(
            x @ p["w"], x[:, :2], (x[0, 0] > 9).astype(int), 1
        ).sum(-1)
    ),
    "scan": case(
        lambda p, x: (
            lax.scan(
                lambda h, _: (jnp.roll(h, 1, -1), None), x @ p["w"], None, 3
            )[0]
            @ p["v"]
        )
    ),
    "act(0) is summed": case(lambda p, x: jnp.cos(x @ p["w"]).sum(-1)),
    "act(0), no bias": case(lambda p, x: jnp.cos(x @ p["w"]) @ p["v"]),
    "act(0), bias used twice": case(
        lambda p, x: (jnp.cos(x @ p["w"]) @ p["v"] + p["c"]) * p["c"]
    ),
    "act(0), sum used twice": case(
        lambda p, x: (lambda y: (y + p["c"]) * y)(jnp.cos(x @ p["w"]) @ p["v"])
    ),
    "shifted": case(lambda p, x: jax.nn.relu(x @ p["w"] + p["b"] + 1).sum(-1)),
    "gather": case(
        lambda p, x: jnp.cos((x @ p["w"])[:, jnp.arange(8)[::-1]]).sum(-1)
    ),
    "scatter": case(
        lambda p, x: (x @ p["w"]).at[:, jnp.array([6, 7])].add(1.0).sum(-1)
    ),
    "unknown": case(lambda p, x: jnp.abs(jnp.fft.fft(x @ p["w"])) @ p["v"]),
    "output": case(lambda p, x: x @ p["w"], "wbv"),
    "cond": case(
        lambda p, x: (
            lax.cond(x[0, 0] > 9, lambda h: h, lambda h: h * 0 + 1, x @ p["w"])
            @ p["v"]
        )
    ),
    "while": case(
        lambda p, x: (
            lax.fori_loop(0, 3, lambda i, h: jnp.roll(h, 1, -1), x @ p["w"])
            @ p["v"]
        )
    ),
    "padded conv": case(
        lambda p, x: (
            lax.conv_general_dilated(
                jax.nn.sigmoid(x @ p["w"])[None],
                jnp.stack([p["v"]] * 3),
                (1,),
                "SAME",
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
            + p["c"]
        )
    ),
}


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.sweep(4)
def test_what_would_be_wrong_stays(name):
    fn, names = FROZEN[name]
    params = kill(perceptron(), names)
    small = jprune.compact(fn, params, X)
    assert small.params["w"].shape == (4, 8)
    assert relative(small.certify(X)) < 1e-12
    less = {
        "w": jnp.delete(params["w"], DEAD, 1),
        "b": jnp.delete(params["b"], DEAD),
        "v": jnp.delete(params["v"], DEAD, 0),
        "c": params["c"],
    }
    found, wanted = fn(less, X), fn(params, X)
    assert found.shape != wanted.shape or not np.allclose(found, wanted)


def test_one_position_that_is_everywhere_stays():
    def fn(params, x):
        return (jnp.sin(x @ params["w"]) + params["b"][1:2]) @ params["v"]

    small = jprune.compact(fn, kill(perceptron(), "wb"), X)
    kept = small.plan.leaves[0].kept[0]
    assert kept is not None
    assert 1 in kept[0]
    assert relative(small.certify(X)) < 1e-12


REMOVED = {
    "incoming": case(
        lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"] + p["c"]
    ),
    "constant into a bias": case(
        lambda p, x: jnp.cos(x @ p["w"] + p["b"]) @ p["v"] + p["c"]
    ),
    "outgoing": case(lambda p, x: jnp.cos(x @ p["w"]) @ p["v"], "v"),
    "mean": case(lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]).mean(-1), "wb"),
    "norm": case(lambda p, x: jnp.linalg.norm(x @ p["w"], axis=-1)),
    "one-pass variance": case(
        lambda p, x: (lambda h: (h * h).mean(-1) - h.mean(-1) ** 2)(x @ p["w"])
    ),
    "gated": case(
        lambda p, x: (
            (x @ p["w"])
            * jax.nn.sigmoid((x @ jnp.concatenate([p["w"]] * 2, 1))[:, 8:])
            @ p["v"]
        )
    ),
    "dropout": case(
        lambda p, x: (
            jnp.where(
                jax.random.bernoulli(jax.random.key(0), 0.5, (6, 8)),
                x @ p["w"],
                0,
            )
            @ p["v"]
        )
    ),
    "a constant of the program": case(
        lambda p, x: (jax.nn.relu(x @ p["w"]) * jnp.arange(1.0, 9)) @ p["v"]
    ),
    "concatenated": case(
        lambda p, x: (
            jnp.concatenate([x @ p["w"], jnp.sin(x @ p["w"])], -1)
            @ jnp.concatenate([p["v"], p["v"]])
        )
    ),
    "reversed": case(lambda p, x: (x @ p["w"])[:, ::-1] @ p["v"][::-1]),
    "repeated": case(
        lambda p, x: jnp.repeat(x @ p["w"], 2, -1) @ jnp.repeat(p["v"], 2, 0)
    ),
    "padded": case(
        lambda p, x: jnp.pad(x @ p["w"], ((0, 0), (1, 2))) @ jnp.ones((11, 2))
    ),
    "while": case(
        lambda p, x: (
            lax.fori_loop(
                0, 3, lambda i, h: jnp.tanh(h) + x @ p["w"], jnp.zeros((6, 8))
            )
            @ p["v"]
        )
    ),
    "cond": case(
        lambda p, x: (
            lax.cond(x[0, 0] > 0, jnp.tanh, jnp.sin, x @ p["w"]) @ p["v"]
        )
    ),
    "remat": case(
        lambda p, x: (
            jax.checkpoint(lambda h: jax.nn.gelu(h))(x @ p["w"]) @ p["v"]
        )
    ),
}


REMOVED |= {
    "cumulative over rows": case(
        lambda p, x: (
            (lambda h: jnp.cumsum(h, 0) + jnp.cumprod(h, 0) + lax.cummax(h, 0))(
                x @ p["w"]
            )
            @ p["v"]
        )
    ),
    "sorted rows": case(
        lambda p, x: (jnp.sort(x @ p["w"], 0) + (x @ p["w"]).max(0)) @ p["v"]
    ),
    "some rows": case(
        lambda p, x: (
            lax.dynamic_slice_in_dim(
                x @ p["w"], (x[0, 0] > 0).astype(int), 2, 0
            )
            @ p["v"]
        )
    ),
    "windows over rows": case(
        lambda p, x: (
            lax.reduce_window(
                jnp.abs(x @ p["w"]), 0.0, lax.add, (2, 1), (2, 1), "VALID"
            )
            @ p["v"]
        )
    ),
    "embedding": case(
        lambda p, x: p["w"][(x[:, 0] > 0).astype(int)] @ p["v"] + p["c"]
    ),
    "one-hot embedding": case(
        lambda p, x: (
            jax.nn.one_hot((x[:, 0] > 0).astype(int), 4) @ p["w"] @ p["v"]
        )
    ),
    "stacked and split": case(
        lambda p, x: (
            jnp.squeeze(jnp.split(jnp.stack([x @ p["w"], x @ p["w"]]), 2)[1], 0)
            @ p["v"]
        )
    ),
    "unstacked": case(
        lambda p, x: sum(jnp.unstack(x @ p["w"])) @ p["v"] + jnp.ones(3)
    ),
    "tiled": case(
        lambda p, x: jnp.tile(x @ p["w"], (2, 2)) @ jnp.tile(p["v"], (2, 1))
    ),
    "tied, transposed": case(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T)
    ),
    "custom derivative of a product": case(
        lambda p, x: jax.nn.swish(x @ p["w"]) @ p["v"] + jax.nn.relu(p["c"])
    ),
}


@pytest.mark.parametrize("name", REMOVED)
@pytest.mark.sweep(6)
def test_what_adds_nothing_goes(name):
    fn, names = REMOVED[name]
    params = kill(perceptron(), names)
    if name == "constant into a bias":
        params = kill(perceptron(), "w")
    small = jprune.compact(fn, params, X)
    assert small.params["w"].shape == (4, 5)
    assert relative(small.certify(X)) < 1e-12
    if name not in ("constant into a bias", "while"):  # moved; no gradient
        found = jax.grad(lambda p: small.fn(p, X).sum())(small.params)
        wanted = small.take(jax.grad(lambda p: fn(p, X).sum())(params))
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9)
        jax.tree.map(close, found, wanted)


@pytest.mark.parametrize(
    ("dead", "size"),
    [
        ((4, 5, 6, 7), 4),  # a head
        ((1, 5), 6),  # the same width of every head
        ((1, 6), 8),  # of each head another one: the axis is no product then
    ],
)
def test_heads_lose_whole_heads_or_the_same_of_each(dead, size):
    def fn(params, x):
        q, k = (h.reshape(-1, 2, 4) for h in (x @ params["q"], x @ params["k"]))
        scores = jax.nn.softmax(jnp.einsum("bhd,chd->hbc", q, k))
        mixed = jnp.einsum("hbc,chd->bhd", scores, (k * k))
        return mixed.reshape(-1, 8) @ params["o"]

    rng = np.random.default_rng(0)
    params = {n: jnp.asarray(rng.standard_normal((4, 8))) for n in "qk"}
    params["o"] = jnp.asarray(rng.standard_normal((8, 3)))
    params = {
        n: p.at[(slice(None), np.array(dead)) if n != "o" else dead].set(0)
        if n != "o"
        else p.at[np.array(dead)].set(0)
        for n, p in params.items()
    }
    small = jprune.compact(fn, params, X)
    assert small.params["q"].shape == (4, size)
    assert relative(small.certify(X, seeds=1)) < 1e-12


@pytest.mark.parametrize(
    ("groups", "dead", "size"),
    [
        (2, (0, 1), 2),  # a group
        (2, (0, 2), 2),  # the same place in each group
        (2, (0, 3), 4),  # of each another one: what is left is no product
        (4, (1, 2), 2),  # depthwise
    ],
)
def test_grouped_convolutions(groups, dead, size):
    def conv(x, w, groups=1):
        return lax.conv_general_dilated(
            x,
            w,
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
        )

    def fn(params, x):
        h = jax.nn.relu(conv(x[None], params["in"]))
        return conv(conv(h, params["mid"], groups), params["out"])

    rng = np.random.default_rng(0)
    shapes = {"in": (3, 4, 4), "mid": (3, 4 // groups, 4), "out": (3, 4, 2)}
    params = {n: jnp.asarray(rng.standard_normal(s)) for n, s in shapes.items()}
    params["in"] = params["in"].at[..., np.array(dead)].set(0)
    params["mid"] = params["mid"].at[..., np.array(dead)].set(0)
    small = jprune.compact(fn, params, X)
    assert relative(small.certify(X, seeds=1)) < 1e-12
    assert small.params["in"].shape == (3, 4, size)


def test_dead_chains_go_whole():
    def fn(params, x):
        for w in params:
            x = jnp.sin(x @ w)
        return x

    rng = np.random.default_rng(0)
    shapes = [(4, 5), (5, 6), (6, 7), (7, 2)]
    params = [jnp.asarray(rng.standard_normal(s)) for s in shapes]
    # The last layer ignores two units, the one before feeds a third unit to
    # those two only, and so on.
    params[3] = params[3].at[:2].set(0)
    params[2] = params[2].at[0, 2:].set(0)
    params[1] = params[1].at[1, 1:].set(0)
    small = jprune.compact(fn, params, X)
    assert sizes(small.params) == [(4, 4), (4, 5), (5, 5), (5, 2)]
    assert relative(small.certify(X)) < 1e-12


def test_relu_keeps_its_derivative_at_zero():
    def fn(params, x):
        return (jax.nn.relu(x @ params["w"]) @ params["v"]).sum()

    params = kill(perceptron())
    small = jprune.compact(fn, params, X)
    zero = jax.tree.map(jnp.zeros_like, small.params)
    zero["v"] += 1
    grad = jax.grad(small.fn)(zero, X)
    assert (grad["w"] == 0).all()  # max(x, 0) alone would give one half


def test_custom_vjp_is_kept():
    @jax.custom_vjp
    def act(x):
        return x**3

    act.defvjp(lambda x: (x**3, x), lambda x, g: (7 * g,))

    def fn(params, x):
        return (act(x @ params["w"]) @ params["v"]).sum()

    params = kill(perceptron())
    small = jprune.compact(fn, params, X)
    found = jax.grad(small.fn)(small.params, X)["w"]
    wanted = small.take(jax.grad(fn)(params, X))["w"]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert found.shape == (4, 5)


def test_other_shapes_are_traced_again_and_checked():
    def fn(params, x):
        h = x @ params["w"]
        h = jax.nn.softmax(h) if len(x) == 2 else h
        return h @ params["v"]

    params = kill(perceptron(), "w")
    small = jprune.compact(fn, params, X)
    x = jnp.concatenate([X, X])
    np.testing.assert_allclose(small.fn(small.params, x), fn(params, x))
    with pytest.raises(
        ValueError, match=r"no longer a unit|would add to a sum"
    ):
        small.fn(small.params, X[:2])


def test_jit_vmap_export():
    def fn(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["v"]

    params = kill(perceptron())
    small = jprune.compact(fn, params, X)
    wanted = fn(params, X)
    jitted = jax.jit(small.fn)(small.params, X)
    rows = jax.vmap(small.fn, (None, 0))(small.params, X)
    exported = jax.export.export(small.fn)(small.params, X)
    for found in (jitted, rows, exported.call(small.params, X)):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.slow
def test_plan_is_plain_data():
    fn, params, args = MODELS["gpt"]()
    params = random_tree(params)
    graph = jprune.trace_units(fn, params, *args)
    masks = jprune.find_masks(params, 0.5, structure=jprune.units(graph))
    small = jprune.compact(fn, params, *args, masks=masks)
    plan = Plan.from_json(small.plan.to_json())
    assert plan == small.plan
    again = plan.apply(jprune.apply_masks(params, masks))
    jax.tree.map(np.testing.assert_array_equal, again, small.params)
    with pytest.raises(ValueError, match=r"knows no parameter 'other'"):
        plan.apply({"other": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'emb' has shape \(2, 2\), the plan"):
        plan.apply(params | {"emb": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="no plan"):
        Plan.from_json("[3]")


def test_layers_of_a_scan_keep_units_of_their_own():
    def fn(params, x):
        def layer(h, w):
            return h + jnp.tanh(h @ w["up"]) @ w["down"], None

        return lax.scan(layer, x, params)[0]

    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((3, 4, 8)), rng.standard_normal((3, 8, 4))
    alive = np.array([[0, 1, 2], [3, 4, 7], [5, 6, 2]])
    for k, row in enumerate(alive):
        up[k][:, np.setdiff1d(np.arange(8), row)] = 0
    params = {"up": jnp.asarray(up), "down": jnp.asarray(down)}
    small = jprune.compact(fn, params, X)
    assert sizes(small.params) == {"up": (3, 4, 3), "down": (3, 3, 4)}
    kept = small.plan.leaves[1].kept[2]
    assert kept == ((0, 1, 2), (3, 4, 7), (2, 5, 6))
    assert relative(small.certify(X)) < 1e-12


def test_training_continues_from_the_same_moments():
    def fn(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def step(f, tx, params, state):
        grads = jax.grad(lambda p: (f(p, X) ** 2).mean())(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = perceptron()
    del params["c"]
    graph = jprune.trace_units(fn, params, X)
    pruner = jprune.prune(0.5, structure=jprune.units(graph))
    tx = optax.chain(optax.adamw(1e-2), pruner)
    state = tx.init(params)
    for _ in range(3):
        params, state = step(fn, tx, params, state)
    masks = jprune.get_masks(state)
    small = jprune.compact(fn, params, X, masks=masks)
    less, inner = small.params, small.take(state[0])
    alone = optax.adamw(1e-2)
    for _ in range(3):
        params, state = step(fn, tx, params, state)
        less, inner = step(small.fn, alone, less, inner)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
        less,
        small.take(params),
    )


def test_what_cannot_be_rewritten_stays(monkeypatch):
    def fn(params, x):
        h = jnp.tanh(x @ params["w"]) @ params["v"]
        return jnp.sin(h @ params["w"][:3]) @ params["v"]

    monkeypatch.setitem(rewrite.RULES, "tanh", rewrite.as_it_is)
    params = kill(perceptron())
    small = jprune.compact(fn, params, X)
    assert relative(small.certify(X)) < 1e-12
    assert small.params["w"].shape == (4, 8)


def test_take_refuses_another_shape():
    params = kill(perceptron())
    small = jprune.compact(REMOVED["incoming"][0], params, X)
    with pytest.raises(ValueError, match=r"'mu/w' has shape \(2, 8\)"):
        small.take({"mu": {"w": jnp.ones((2, 8))}})


def fine(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["v"]


SHAPE = jax.ShapeDtypeStruct((6, 4), "float64")
REFUSED = {
    "no function": (
        lambda p: jprune.trace_units(3, p, X),
        r"`trace_units\(fn, .*`: fn must be a function, got 3",
    ),
    "no parameter": (
        lambda p: jprune.trace_units(fine, p | {"name": "mlp"}, X),
        r"the parameter 'name' must be an array.*got 'mlp'",
    ),
    "no argument": (
        lambda p: jprune.compact(fine, p, X, {"mode": "train"}),
        r"`compact\(.*`: args\[1\], 'mode', must be an array.*got 'train'",
    ),
    "a shape": (
        lambda p: jprune.compact(fine, p | {"w": SHAPE}, X),
        r"`compact\(.*`: the parameter 'w' must have values, got a shape",
    ),
    "traced": (
        lambda p: jax.jit(lambda p: jprune.compact(fine, p, X).params)(p),
        r"'b' must have values, got a traced value",
    ),
    "the cost of a shape": (
        lambda p: jprune.report.cost(fine, p | {"w": SHAPE}, X),
        r"`cost\(.*`: the parameter 'w' must have values",
    ),
    "floating masks": (
        lambda p: jprune.compact(fine, p, X, masks={"w": jnp.ones((4, 8))}),
        r"`compact\(masks=...\)`: the mask of 'w' must be bool, got float64",
    ),
    "a shape certified": (
        lambda p: jprune.compact(fine, p, X).certify(SHAPE),
        r"`certify\(\*args\)`: args\[0\].* must have values, got a shape",
    ),
    "dense parameters": (
        lambda p: jprune.compact(fine, kill(p), X).fn(p, X),
        r"`fn` of `compact`: 'v' has shape \(8, 3\), the smaller 'v' \(5, 3\)",
    ),
    "fewer parameters": (
        lambda p: jprune.compact(fine, p, X).fn({"w": p["w"]}, X),
        r"takes 4 parameters, got 1",
    ),
    "no leaves": (lambda p: Plan.from_json("{}"), "no plan, got '{}'"),
    "a number": (lambda p: Plan.from_json("3"), "no plan, got '3'"),
    "no text": (lambda p: Plan.from_json(3), "no plan, got 3"),  # type: ignore[arg-type]
    "no position": (
        lambda p: Plan.from_json(
            '[{"path": "w", "shape": [3], "kept": [[[0, 7]]]}]'
        ),
        r"'w' keeps \[0, 7\] of an axis of 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_call_the_place_and_the_value(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(perceptron())


def test_masks_of_a_subtree():
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    variables = model.init(jax.random.key(0), X)
    masks = {"layers_0": {"kernel": jnp.arange(8) > 2}}
    small = jprune.compact(model.apply, variables, X, masks=masks)
    assert small.params["params"]["layers_0"]["kernel"].shape == (4, 5)
    with pytest.raises(ValueError, match="'nowhere' fits no parameter"):
        jprune.compact(
            model.apply, variables, X, masks={"nowhere": jnp.ones(3, bool)}
        )
    masks = {"layers_0": {"bias": jnp.ones(5, bool)}}
    with pytest.raises(ValueError, match=r"layers_0/bias.*shape \(5,\)"):
        jprune.compact(model.apply, variables, X, masks=masks)


def test_no_copy_of_the_whole_model_is_made():
    def fn(params, x):
        for w in params:
            x = jax.nn.relu(x @ w)
        return x

    params = [jnp.ones((512, 512), jnp.float32) for _ in range(8)]
    half = np.arange(512) % 2 == 0
    masks = [np.tile(half, (512, 1)) for _ in params[1:]] + [None]
    tracemalloc.start()
    small = jprune.compact(fn, params, np.ones((1, 512)), masks=masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    result = sum(w.nbytes for w in small.params)
    whole = sum(w.nbytes for w in params)
    # Besides: what a trace itself needs.
    assert peak < result + 2 * params[0].nbytes + 2**20 < whole


def test_masked_weights_that_stay_are_zero():
    def fn(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["v"]

    params = kill(perceptron()) | {"w": jnp.full((4, 8), jnp.nan)}
    mask = np.ones((4, 8), bool)
    mask[:, DEAD] = False
    mask[0] = False
    small = jprune.compact(fn, params, X, masks={"w": mask})
    assert small.params["w"].shape == (4, 5)
    assert (small.params["w"][0] == 0).all()
    assert jnp.isnan(small.params["w"][1:]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_that_are_converted(dtype):
    def fn(params, x):
        w, b, v, c = (params[k].astype(dtype) for k in "wbvc")
        return jnp.cos(x.astype(dtype) @ w + b) @ v + c

    small = jprune.compact(fn, kill(perceptron(), "w"), X)
    assert small.params["w"].shape == (4, 5)
    assert relative(small.certify(X)) < 32 * float(jnp.finfo(dtype).eps)


@functools.cache
def half_of_a_module():
    model = MLP((10, 12, 3))
    variables = jax.jit(model.init)(jax.random.key(0), X)
    graph = jprune.trace_units(model.apply, variables, X)
    masks = jprune.find_masks(
        variables, 0.5, structure=jprune.units(graph, round_to=2)
    )
    small = jprune.compact(model.apply, variables, X, masks=masks)
    return small, MLP.from_params(small.params)


@pytest.mark.slow
def test_flax_modules_are_rebuilt():
    small, rebuilt = half_of_a_module()
    assert rebuilt.features == (6, 6, 3)  # 5 is rounded up
    np.testing.assert_allclose(
        np.asarray(rebuilt.apply(small.params, X)),
        small.fn(small.params, X),
        rtol=1e-6,
    )


@pytest.mark.slow
def test_the_program_is_that_of_the_smaller_module():
    small, rebuilt = half_of_a_module()
    found, wanted = (
        list(steps(jax.make_jaxpr(f)(small.params, X).jaxpr))
        for f in (small.fn, rebuilt.apply)
    )
    assert found == wanted
    assert not any(x.committed for x in jax.tree.leaves(small.params))


def steps(jaxpr):
    """Primitives and the shapes that they make, calls opened."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _jax.CALLS:
            yield from steps(_jax.opened(_jax.held(eqn))[0])
        else:
            yield eqn.primitive.name, [v.aval for v in eqn.outvars]


def test_nnx():
    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(8, use_running_average=True, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(8, 3, rngs=nnx.Rngs(1)),
    )
    definition, state = nnx.split(model)

    def fn(state, x):
        return nnx.merge(definition, state)(x)

    graph = jprune.trace_units(fn, state, X)
    masks = jprune.find_masks(state, 0.5, structure=jprune.units(graph))
    small = jprune.compact(fn, state, X, masks=masks)
    assert small.params["layers"][0]["kernel"].shape == (4, 4)
    assert relative(small.certify(X)) < 1e-6  # float32 parameters


@pytest.mark.slow
def test_equinox():
    model = eqx.nn.MLP(4, 3, 8, 2, activation=jnp.cos, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def fn(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    graph = jprune.trace_units(fn, params, X)
    axes = [dict(pool.axes) for pool in graph.pools]
    assert axes[0].keys() == {
        *("layers/0/weight", "layers/0/bias", "layers/1/weight")
    }
    pruner = jprune.prune(0.5, structure=jprune.units(graph))
    tx = optax.chain(optax.adam(1e-3), pruner)
    state = tx.init(params)
    grads = jax.grad(lambda p: fn(p, X).sum())(params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    masks = jprune.get_masks(state)
    small = jprune.compact(fn, params, X, masks=masks)
    less = eqx.combine(small.params, static)
    assert [layer.weight.shape for layer in less.layers] == [
        *((4, 4), (4, 4), (3, 4))
    ]
    assert relative(small.certify(X)) < 1e-6  # float32 parameters
    np.testing.assert_allclose(
        jax.vmap(less)(X), small.fn(small.params, X), rtol=1e-5
    )
    moments = small.take(state[0])[0].mu
    assert moments.layers[0].weight.shape == (4, 4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_other_precisions(dtype):
    fn = REMOVED["constant into a bias"][0]
    params = jax.tree.map(lambda x: x.astype(dtype), kill(perceptron(), "w"))
    x = X.astype(dtype)
    small = jprune.compact(fn, params, x)
    assert small.params["w"].shape == (4, 5)
    assert small.params["w"].dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    assert relative(small.certify(x)) < 16 * eps


def test_certify_sees_a_difference():
    fn = REMOVED["incoming"][0]
    small = jprune.compact(fn, kill(perceptron()), X)
    small.params["c"] = small.params["c"] + 1
    assert small.certify(X).error == pytest.approx(1)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_many_random_architectures(seed):
    check(random_model(seed))


def check(model: Model) -> None:
    fn, params, args = model
    small = jprune.compact(fn, params, *args)
    assert relative(small.certify(*args, seeds=1)) < 1e-11


@pytest.mark.slow
def test_slots_with_axes_in_front_are_cut() -> None:
    """L-BFGS is; the statistics of Adafactor and SM3 are refused by name."""
    variables = MLP((160, 140, 3)).init(jax.random.key(0), jnp.ones((1, 130)))
    fn, x = MLP((160, 140, 3)).apply, jnp.ones((1, 130))
    structure = jprune.units(jprune.trace_units(fn, variables, x))
    masks = jprune.find_masks(variables, 0.5, structure=structure)
    small = jprune.compact(fn, variables, x, masks=masks)
    state = small.take(optax.scale_by_lbfgs(3).init(variables))
    chex.assert_trees_all_equal_shapes(
        state, optax.scale_by_lbfgs(3).init(small.params)
    )
    for tx in (optax.adafactor(1e-3), optax.sm3(1e-3)):
        with pytest.raises(ValueError, match=r"take\(tree\).*can't be told"):
            small.take(tx.init(variables))


def on_host(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def test_numpy_parameters_become_arrays_of_jax():
    """Of their own, in their dtypes, whether they are cut or not."""
    params = on_host(kill(perceptron()))
    small = jprune.compact(
        fine, params, X.astype("f"), masks={"c": params["c"] > 9}
    )
    state = on_host(optax.adam(1e-3).init(params))
    for tree in (small.params, small.take(params), small.take(state)):
        for leaf in jax.tree.leaves(tree):
            assert isinstance(leaf, jax.Array)
            assert leaf.dtype == jnp.float32
    assert sizes(small.params) == {
        **{"w": (4, 5), "b": (8,), "v": (5, 3), "c": (3,)}
    }
    before = np.array(small.params["b"])
    params["b"][:] = 7
    np.testing.assert_array_equal(small.params["b"], before)
    on_disk = small.plan.apply(params)  # plain data slices on the host
    assert all(isinstance(x, np.ndarray) for x in on_disk.values())


@pytest.mark.parametrize("name", ["constant into a bias", "incoming"])
def test_what_jax_would_round_is_left_as_it_is(name):
    """float64 without x64: no bit of what the user had is lost."""
    params = jax.tree.map(np.asarray, kill(perceptron(), "w"))
    params |= {"n": np.arange(3)}
    masks = {"c": np.array([True, False, True])}
    fn = REMOVED[name][0]
    exact = jprune.compact(fn, params, X, masks=masks)
    with jax.enable_x64(False):
        x = X.astype("f")
        small = jprune.compact(fn, params, x, masks=masks)
        assert relative(small.certify(x)) < 1e-6
        taken = small.take(params)
    for tree in (small.params, taken):
        for leaf in tree.values():
            assert isinstance(leaf, np.ndarray)
            assert leaf.dtype in (np.float64, np.int64)
    for leaf, wanted in zip(
        small.params.values(), exact.params.values(), strict=True
    ):
        assert leaf.shape == wanted.shape
    np.testing.assert_array_equal(small.params["w"], exact.params["w"])


def test_a_compact_model_prints_its_leaves_and_no_array():
    params = kill(perceptron()) | {"count": jnp.array(7)}
    small = jprune.compact(REMOVED["incoming"][0], params, X)
    assert repr(small) == "Compact(68 -> 44 parameters)"
    assert str(small).splitlines() == [
        "leaf   shape       parameters",
        "-----------------------------",
        "b      8 -> 5          8 -> 5",
        "c      3                    3",
        "count  scalar               1",
        "v      8x3 -> 5x3    24 -> 15",
        "w      4x8 -> 4x5    32 -> 20",
        "-----------------------------",
        "total                68 -> 44",
    ]


def test_plan_says_what_had_to_stay_and_why():
    def fn(p, x):
        return jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]

    params = {
        # Three columns are 0, of which the bias of one is; an input is unused.
        "w": jnp.ones((4, 8)).at[:, :3].set(0).at[1].set(0),
        "b": jnp.ones(8).at[2].set(0),
        # A unit that nobody reads, and an output that is always 0.
        "v": jnp.ones((8, 3)).at[5].set(0).at[:, 1].set(0),
    }
    small = jprune.compact(fn, params, jnp.ones((1, 4)))
    assert small.plan.sizes == {"b[0]": 6}
    left = {(x.path, x.axis): (x.positions, x.reason) for x in small.plan.left}
    assert left == {
        ("v", 1): (1, "an axis of the output"),
        ("w", 0): (1, "axis 1 of array 0 of the arguments"),
        ("w", 1): (2, "dot_general: it adds to a sum"),
    }
    assert Plan.from_json(small.plan.to_json()) == small.plan
    leaves = json.dumps([leaf._asdict() for leaf in small.plan.leaves])
    assert Plan.from_json(leaves).leaves == small.plan.leaves  # of version 0.1


def test_layers_of_a_stack_stay_alike_and_the_plan_says_so():
    def fn(p, x):
        def layer(x, p):
            return x + jnp.tanh(x @ p["w"]) @ p["v"], None

        return jax.lax.scan(layer, x, p)[0]

    params = {"w": jnp.ones((2, 4, 6)), "v": jnp.ones((2, 6, 4))}
    params = {"w": params["w"].at[0, :, :3].set(0), "v": params["v"]}
    params["v"] = params["v"].at[0, :3].set(0).at[1, 0].set(0)
    small = jprune.compact(fn, params, jnp.ones((1, 4)))
    assert list(small.plan.sizes.values()) == [5]
    reasons = {(x.path, x.positions): x.reason for x in small.plan.left}
    assert all("all layers" in why for why in reasons.values())
    assert reasons.keys() == {("w", 2), ("v", 2)}


def test_keyword_arguments_are_static():
    def fn(p, x, *, train):
        h = jax.nn.relu(x @ p["w"]) @ p["v"]
        return h * 2 if train else h

    params = {"w": jnp.ones((4, 8)).at[:, 2:4].set(0), "v": jnp.ones((8, 3))}
    x = jnp.ones((1, 4))
    graph = jprune.trace_units(fn, params, x, train=False)
    assert len(graph.pools) == 1
    small = jprune.compact(fn, params, x, train=True)
    np.testing.assert_allclose(
        small.fn(small.params, x), fn(params, x, train=True)
    )
    assert (
        jprune.report.cost(fn, params, x, train=True).compact.parameters == 42
    )
    for call in (jprune.trace_units, jprune.compact, jprune.report.cost):
        with pytest.raises(ValueError, match=r"`.*\(\.\.\., train=\.\.\.\)`"):
            call(fn, params, x, train=x)


def test_a_slice_of_which_layers_keep_different_numbers():
    """Each keeps three units, but not as many in both halves."""

    def fn(params, x):
        def layer(h, w):
            y = jnp.tanh(h @ w["up"])
            return h + jnp.concatenate([y[:, 4:], y[:, :4]], 1) @ w[
                "down"
            ], None

        return lax.scan(layer, x, params)[0]

    rng = np.random.default_rng(0)
    alive = np.array([[0, 1, 2], [3, 4, 7]])
    up = np.zeros((2, 4, 8))
    for layer, row in enumerate(alive):
        up[layer][:, row] = rng.standard_normal((4, 3))
    params = {"up": jnp.asarray(up), "down": jnp.ones((2, 8, 4))}
    small = jprune.compact(fn, params, X)
    wanted = fn(params, X)
    np.testing.assert_allclose(small.fn(small.params, X), wanted, rtol=1e-6)
