"""`axes=products`: structures along the axes that are really multiplied."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jprune
from jprune import allocations, structures
from jprune._core.trees import leaves_with_path, path_name

KEY = jax.random.key(0)


def attention(p: Any, x: Any) -> Any:
    q = jnp.einsum("bd,dhw->bhw", x, p["q"])
    return jnp.einsum("bhw,hwd->bd", q, p["out"])


def torch_like(p: Any, x: Any) -> Any:
    return x @ p["weight"].T


def stacked(p: Any, x: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        return jnp.tanh(w @ x), None

    return jax.lax.scan(layer, x, p["w"])[0]


# Function, shapes, an input, and by leaf what gives [layers, in, out].
CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "torch": (
        torch_like,
        {"weight": (8, 16)},
        jnp.ones((1, 16)),
        {"weight": lambda w: w.T[None]},
    ),
    "attention": (
        attention,
        {"q": (16, 2, 8), "out": (2, 8, 16)},
        jnp.ones((1, 16)),
        {
            "q": lambda w: w.reshape(1, 16, 16),
            "out": lambda w: w.reshape(1, 16, 16),
        },
    ),
    "stacked": (
        stacked,
        {"w": (3, 8, 8)},
        jnp.ones(8),
        {"w": lambda w: w.transpose(0, 2, 1)},
    ),
}


KINDS: dict[str, Any] = {
    "n_m": lambda **a: structures.n_m(2, 4, **a),
    "fan_in": structures.fan_in,
    "group": lambda **a: structures.group(2, **a),
    "block": lambda **a: structures.block((2, 4), **a),
}


def drawn(shapes: Any) -> Any:
    return {
        name: jax.random.normal(jax.random.fold_in(KEY, i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["n_m", "fan_in", "group", "block"])
def test_as_kernels_of_two_axes(name: str, kind: str) -> None:
    """Each layer's kernel as [in, out] by hand is the oracle."""
    fn, shapes, x, order = CASES[name]
    params = drawn(shapes)
    make = KINDS[kind]
    products = jprune.trace_products(fn, params, x)
    structure = make(axes=products)
    masks = jprune.find_masks(params, 0.5, structure=structure)
    for path, w in params.items():
        moved, mask = (order[path](np.asarray(a)) for a in (w, masks[path]))
        plain = [
            jprune.find_masks(jnp.asarray(layer), 0.5, structure=make())
            for layer in moved
        ]
        np.testing.assert_array_equal(mask, np.stack(plain))


def test_n_m_runs_along_the_axis_that_is_multiplied() -> None:
    params = drawn({"weight": (32, 16)})
    products = jprune.trace_products(torch_like, params, jnp.ones((1, 16)))
    structure = structures.n_m(2, 4, axes=products)
    mask = jprune.find_masks(params, 0.5, structure=structure)["weight"]
    assert (np.asarray(mask).reshape(32, -1, 4).sum(-1) == 2).all()


def test_variables_and_their_params_have_the_same_axes() -> None:
    model = nn.Dense(8)
    variables = model.init(KEY, jnp.ones((1, 16)))
    products = jprune.trace_products(model.apply, variables, jnp.ones((1, 16)))
    structure = structures.fan_in(axes=products)
    whole = jprune.find_masks(variables, 0.5, structure=structure)["params"]
    part = jprune.find_masks(variables["params"], 0.5, structure=structure)
    np.testing.assert_array_equal(whole["kernel"], part["kernel"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "tree",
    [
        {"layers": [{"weight": (8, 16)}]},  # [out, in] of Equinox and PyTorch
        {"layers": [{"kernel": (16, 2, 8)}]},  # [in, heads, width]
        {"layers": [{"kernel": (3, 3, 8, 16)}]},
        {"layers": [{"kernel": (16,)}]},
    ],
    ids=str,
)
def test_axes_are_never_guessed(kind: str, tree: Any) -> None:
    shape = next(iter(tree["layers"][0].values()))
    params = jax.tree.map(
        jnp.ones, tree, is_leaf=lambda x: isinstance(x, tuple)
    )
    name = next(iter(tree["layers"][0]))
    message = (
        rf"`{kind}\(in_axis=None.*'layers/0/{name}', of shape "
        rf"{re.escape(str(shape))}.*`in_axis=-2, out_axis=-1`.*"
        r"`axes=jprune.trace_products\(fn, params, \*args\)`"
    )
    where = jax.tree.map(lambda _: True, params)
    structure = KINDS[kind]()
    with pytest.raises(ValueError, match=message):
        jprune.find_masks(params, 0.5, structure=structure, where=where)
    with pytest.raises(ValueError, match=message):
        jprune.prune(0.5, structure=structure, where=where).init(params)
    one = KINDS[kind](in_axis=0)  # of two
    with pytest.raises(ValueError, match=message):
        jprune.find_masks(params, 0.5, structure=one, where=where)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_axes_counts_for_every_leaf(kind: str) -> None:
    w = drawn({"w": (16, 8)})["w"]
    plain = jprune.find_masks(w, 0.5, structure=KINDS[kind]())
    said = KINDS[kind](in_axis=-1, out_axis=-2)
    found = jprune.find_masks({"weight": w.T}, 0.5, structure=said)
    np.testing.assert_array_equal(found["weight"].T, plain)
    said = KINDS[kind](in_axis=-2, out_axis=-1)
    found = jprune.find_masks({"weight": w}, 0.5, structure=said)
    np.testing.assert_array_equal(found["weight"], plain)


def by_hand(kind: str, kernel: np.ndarray) -> np.ndarray:
    """Masks of [in, out] at .5, by sorts."""
    inner, outer = kernel.shape
    if kind in ("n_m", "fan_in"):
        pools = kernel.reshape(-1, 4 if kind == "n_m" else inner, outer)
        order = np.argsort(np.argsort(-abs(pools), axis=1), axis=1)
        return (order < pools.shape[1] // 2).reshape(kernel.shape)
    rows, columns = (1, 2) if kind == "group" else (2, 4)
    boxes = kernel.reshape(inner // rows, rows, outer // columns, columns)
    norms = np.sqrt((boxes.astype(np.float64) ** 2).sum((1, 3)))
    order = np.argsort(np.argsort(-norms.ravel())).reshape(norms.shape)
    kept = order < norms.size // 2
    return np.kron(kept, np.ones((rows, columns), bool)).astype(bool)


def linen_attention() -> Any:
    model = nn.MultiHeadDotProductAttention(num_heads=2)
    x = jnp.ones((1, 3, 16))
    return model.apply, model.init(KEY, x), x


def nnx_attention() -> Any:
    model = nnx.MultiHeadAttention(
        num_heads=2, in_features=16, decode=False, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(model)
    return lambda p, x: nnx.merge(graph, p)(x), state, jnp.ones((1, 3, 16))


@pytest.mark.sweep(12)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [linen_attention, nnx_attention])
def test_attention_of_flax(make: Any, kind: str) -> None:
    fn, params, x = make()
    products = jprune.trace_products(fn, params, x)
    structure = KINDS[kind](axes=products)
    masks = jprune.find_masks(params, 0.5, structure=structure)
    seen = 0
    for (path, p), (_, mask) in zip(
        *map(leaves_with_path, (params, masks)), strict=True
    ):
        if path_name(path).endswith("kernel"):
            wanted = by_hand(kind, np.asarray(p).reshape(16, 16))
            np.testing.assert_array_equal(mask.reshape(16, 16), wanted)
            seen += 1
        else:
            assert mask == optax.MaskedNode()
    assert seen == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_of_equinox(kind: str) -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(16, 8, 24, 1, key=KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    products = jprune.trace_products(
        lambda p, x: eqx.combine(p, static)(x), params, jnp.ones(16)
    )
    masks = jprune.find_masks(
        params,
        0.5,
        structure=KINDS[kind](axes=products),
        allocation=allocations.uniform(),
    )
    for layer, mask in zip(params.layers, masks.layers, strict=True):
        wanted = by_hand(kind, np.asarray(layer.weight).T)
        np.testing.assert_array_equal(mask.weight.T, wanted)


@pytest.mark.slow
def test_erdos_renyi_sees_one_layer_of_a_stack() -> None:
    fn, shapes, x, _ = CASES["stacked"]
    params = drawn(shapes | {"other": (8, 32)})

    def both(p: Any, x: Any) -> Any:
        return fn(p, x) @ p["other"]

    products = jprune.trace_products(both, params, x)
    rule = allocations.erdos_renyi()
    found = jprune.find_masks(
        params,
        0.5,
        structure=structures.fan_in(axes=products),
        allocation=rule,
    )
    layers = jprune.find_masks(
        {"other": params["other"]}
        | {str(i): w.T for i, w in enumerate(params["w"])},
        0.5,
        structure=structures.fan_in(),
        allocation=rule,
    )
    assert found["other"].sum() == layers["other"].sum()
    assert found["w"].sum() == sum(layers[str(i)].sum() for i in range(3))


def test_what_has_no_axes_is_refused() -> None:
    params = drawn({"w": (8, 8), "table": (4, 8)})

    def tied(p: Any, x: Any) -> Any:
        return x @ p["w"] @ p["w"].T

    products = jprune.trace_products(tied, params, jnp.ones((1, 8)))
    structure = structures.fan_in(axes=products)
    with pytest.raises(ValueError, match=r"`fan_in\(axes=.*'table'.*not used"):
        jprune.find_masks(params, 0.5, structure=structure)
    with pytest.raises(ValueError, match=r"'w'.*different axes"):
        jprune.find_masks({"w": params["w"]}, 0.5, structure=structure)
    other = {"a": params["w"], "b": params["w"]}

    def fn(p: Any, x: Any) -> Any:
        return x @ p["a"] @ p["b"].T

    products = jprune.trace_products(fn, other, jnp.ones((1, 8)))
    structure = structures.fan_in(axes=products)
    with pytest.raises(ValueError, match=r"'c'.*in no product"):
        jprune.find_masks({"c": params["w"]}, 0.5, structure=structure)

    def twice(p: Any, x: Any) -> Any:
        return x @ p["a"] @ (p["a"] * 2) @ p["b"]

    products = jprune.trace_products(twice, other, jnp.ones((1, 8)))
    structure = structures.fan_in(axes=products)
    with pytest.raises(ValueError, match=r"'a'.*multiplied after mul"):
        jprune.find_masks(other, 0.5, structure=structure)
    with pytest.raises(ValueError, match=r"axes=\.\.\., in_axis=.*one of both"):
        structures.n_m(2, 4, axes=products, in_axis=0)
    with pytest.raises(ValueError, match=r"axes=\.\.\..*trace_products"):
        structures.block((2, 2), axes={"w": 1})  # type: ignore[arg-type]
