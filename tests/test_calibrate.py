"""`calibrate`: what products see, against NumPy, in float64."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compaction_models import MODELS
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_products import ALL

import jprune
from jprune import calibrate


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def tree(**shapes: tuple[int, ...]) -> Any:
    return {
        name: jnp.asarray(numbers(*shape, seed=i))
        for i, (name, shape) in enumerate(shapes.items())
    }


def only(stats: Any, path: str) -> Any:
    ((site, moments),) = stats.of(path)
    return site, moments


def check(moments: Any, rows: Any, weights: Any = None) -> None:
    """Against rows [G, M, K]."""
    rows = np.asarray(rows, np.float64)
    rows = rows if rows.ndim > 2 else rows[None]
    weights = np.ones(rows.shape[1]) if weights is None else weights
    gram = np.einsum("gmk,m,gml->gkl", rows, weights, rows)
    np.testing.assert_allclose(moments.gram, gram, atol=1e-10)
    total = np.einsum("gmk,m->gk", rows, weights)
    np.testing.assert_allclose(moments.sum, total, atol=1e-10)
    count = np.full(len(rows), np.sum(weights))
    np.testing.assert_allclose(moments.count, count)


def dense(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]


DENSE = {"w": (4, 6), "b": (6,), "v": (6, 2)}
X = numbers(10, 4, seed=9)


def test_dense_layers_against_numpy() -> None:
    params = tree(**DENSE)
    stats = calibrate(dense, params, [X[:7], X[7:]])
    check(only(stats, "w")[1], X)
    hidden = np.tanh(X @ params["w"] + params["b"])
    check(only(stats, "v")[1], hidden)
    assert [site.bias for site in stats.sites] == ["b", None]
    assert stats.missed == ()


def patches(x: Any, shape: Any, **how: Any) -> Any:
    found = lax.conv_general_dilated_patches(
        x, shape, dimension_numbers=("NHWC", "HWIO", "NHWC"), **how
    )
    return np.asarray(found).reshape(-1, found.shape[-1])


@pytest.mark.parametrize(
    "how",
    [
        {"padding": "VALID", "window_strides": (1, 1)},
        {"padding": "SAME", "window_strides": (2, 1)},
        {"padding": ((2, 0), (1, 3)), "window_strides": (2, 3)},
        {
            "padding": "SAME",
            "window_strides": (1, 1),
            "rhs_dilation": (2, 1),
        },
        {
            "padding": ((1, 1), (0, 2)),
            "window_strides": (1, 2),
            "lhs_dilation": (2, 3),
        },
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_see_their_windows(how: Any, groups: int) -> None:
    x, params = numbers(2, 6, 7, 4), tree(w=(3, 2, 4 // groups, 6))

    def fn(p: Any, x: Any) -> Any:
        return lax.conv_general_dilated(
            x,
            p["w"],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            **how,
        )

    site, moments = only(calibrate(fn, params, [x]), "w")
    strides = {"filter_shape" if k == "x" else k: v for k, v in how.items()}
    rows = patches(x, (3, 2), **strides)
    many = rows.shape[1] // groups
    rows = np.moveaxis(rows.reshape(-1, groups, many), 1, 0)
    check(moments, rows)
    out = np.einsum("gmk,gkn->mgn", rows, site.matrix(params["w"]))
    np.testing.assert_allclose(
        out.reshape(fn(params, x).shape), fn(params, x), atol=1e-10
    )


def test_attention_contracts_two_axes_and_shares_one_gram() -> None:
    module = nn.MultiHeadDotProductAttention(2, param_dtype=jnp.float64)
    x = numbers(2, 3, 4)
    params = module.init(jax.random.key(0), x)
    stats = calibrate(module.apply, params, [x])
    assert len(stats.sites) == 4
    assert len(stats.moments) == 2
    for name in ("query", "key", "value"):
        site, moments = only(stats, f"params/{name}/kernel")
        check(moments, x.reshape(6, 4))
        assert site.bias == f"params/{name}/bias"
    site, moments = only(stats, "params/out/kernel")
    kernel = site.matrix(params["params"]["out"]["kernel"])[0]
    bias = params["params"]["out"]["bias"]
    assert moments.gram.shape == (1, 4, 4)
    # Outputs' sums and squares are those that the moments give.
    out = np.asarray(module.apply(params, x) - bias).reshape(6, 4)
    np.testing.assert_allclose(moments.sum[0] @ kernel, out.sum(0))
    got = kernel.T @ moments.gram[0] @ kernel
    np.testing.assert_allclose(got, out.T @ out)


def left(p: Any, x: Any) -> Any:
    """Parameters on the left, and heads on their own axes."""
    q = jnp.einsum("dhw,bd->hbw", p["q"], x)
    return jnp.einsum("hbw,hwd->bd", q, p["out"])


def test_a_parameter_on_the_left() -> None:
    params, x = tree(q=(4, 3, 2), out=(3, 2, 5)), X
    stats = calibrate(left, params, [x])
    check(only(stats, "q")[1], x)
    heads = np.einsum("bd,dhw->bhw", x, params["q"]).reshape(len(x), 6)
    check(only(stats, "out")[1], heads)


def fused(p: Any, x: Any) -> Any:
    q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
    return q * k + v


def sliced(p: Any, x: Any) -> Any:
    q, k, v = jnp.split(p["qkv"], 3, axis=1)
    return (x @ q) * (x @ k) + x @ v


def test_kernels_in_one_array() -> None:
    params = tree(qkv=(4, 6))
    check(only(calibrate(fused, params, [X]), "qkv")[1], X)
    parts = calibrate(sliced, params, [X])
    assert len(parts.sites) == 3
    assert len(parts.moments) == 1
    check(parts.moments[0], X)
    kernels = [site.matrix(params["qkv"])[0] for site in parts.sites]
    np.testing.assert_array_equal(np.concatenate(kernels, 1), params["qkv"])


def test_members_of_an_ensemble() -> None:
    params = tree(w=(3, 4, 5))

    def shared(p: Any, x: Any) -> Any:
        return jax.vmap(lambda w: x @ w)(p["w"])

    check(only(calibrate(shared, params, [X]), "w")[1], X)
    own = numbers(3, 7, 4)

    def each(p: Any, x: Any) -> Any:
        return jax.vmap(jnp.matmul)(x, p["w"])

    check(only(calibrate(each, params, [own]), "w")[1], own)


def layer(x: Any, w: Any, b: Any) -> Any:
    return jnp.tanh(x @ w + b)


def stacked(p: Any, x: Any) -> Any:
    return lax.scan(lambda x, w: (layer(x, *w), None), x, (p["w"], p["b"]))[0]


def reverse(p: Any, x: Any) -> Any:
    step = lambda x, w: (layer(x, *w), None)
    return lax.scan(step, x, (p["w"], p["b"]), reverse=True)[0]


@pytest.mark.parametrize("fn", [stacked, reverse])
def test_layers_of_a_scan_are_those_of_a_loop(fn: Any) -> None:
    params = tree(w=(3, 4, 4), b=(3, 4))
    site, moments = only(calibrate(fn, params, [X]), "w")
    assert moments.gram.shape == (3, 1, 4, 4)
    assert site.bias == "b"
    x = X
    for i in range(3)[:: -1 if fn is reverse else 1]:
        check(jax.tree.map(lambda m, i=i: m[i], moments), x)
        x = layer(x, params["w"][i], params["b"][i])


def recurrent(p: Any, xs: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["into"] + h @ p["again"])
        return h, h

    return lax.scan(step, jnp.zeros((2, 3), xs.dtype), xs)[1]


def test_recurrent_weights_sum_over_time() -> None:
    params, xs = tree(into=(4, 3), again=(3, 3)), numbers(5, 2, 4)
    stats = calibrate(recurrent, params, [xs])
    check(only(stats, "into")[1], xs.reshape(10, 4))
    states = np.asarray(recurrent(params, xs))
    before = np.concatenate([np.zeros((1, 2, 3)), states[:-1]])
    check(only(stats, "again")[1], before.reshape(10, 3))


def branches(p: Any, x: Any) -> Any:
    return lax.cond(x[0, 0] > 0, lambda x: x @ p["a"], lambda x: x @ p["b"], x)


def test_a_branch_that_is_not_taken_sees_nothing() -> None:
    params = tree(a=(4, 2), b=(4, 2))
    up = np.abs(X)
    stats = calibrate(branches, params, [up])
    check(only(stats, "a")[1], up)
    none = only(stats, "b")[1]
    assert all(not np.any(x) for x in none)
    both = calibrate(branches, params, [up, -up])
    check(only(both, "a")[1], up)
    check(only(both, "b")[1], -up)


def test_while_is_missed_and_said() -> None:
    def fn(p: Any, x: Any) -> Any:
        x = lax.while_loop(
            lambda x: jnp.sum(x**2) > 1.0, lambda x: 0.1 * x @ p["w"], x
        )
        return x @ p["v"]

    params = tree(w=(4, 4), v=(4, 2))
    stats = calibrate(fn, params, [X])
    assert stats.paths() == ["v"]
    assert [path for path, _ in stats.missed] == ["w"]
    assert "missed: w" in str(stats)


def test_bfloat16_inputs_are_summed_in_float32() -> None:
    x = jnp.asarray(1 + numbers(4096, 2) / 8, jnp.bfloat16)
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    stats = calibrate(lambda p, x: x @ p["w"], params, [x])
    assert {a.dtype for a in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    rows = np.asarray(x, np.float64)
    gram = only(stats, "w")[1].gram[0]
    np.testing.assert_allclose(gram, rows.T @ rows, rtol=1e-4)


def test_a_cast_parameter_is_still_one() -> None:
    module = nn.Dense(3, dtype=jnp.bfloat16)
    x = jnp.asarray(X, jnp.float32)
    params = module.init(jax.random.key(0), x)
    site, moments = only(calibrate(module.apply, params, [x]), "params/kernel")
    check(moments, np.asarray(x.astype(jnp.bfloat16), np.float64))
    assert site.bias == "params/bias"
    assert moments.gram.dtype == jnp.float32


def test_microbatches_add() -> None:
    params = tree(**DENSE)
    whole = calibrate(dense, params, [X])
    parts = [calibrate(dense, params, [part]) for part in (X[:3], X[3:])]
    total = jax.tree.map(jnp.add, *parts)
    assert total.sites == whole.sites
    for a, b in zip(*map(jax.tree.leaves, (whole, total)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def same(a: Any, b: Any) -> None:
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


def test_weights_of_zero_drop_rows() -> None:
    params, keep = tree(**DENSE), np.arange(10) % 3 > 0
    got = calibrate(dense, params, [X], weights=lambda x: keep)
    same(got, calibrate(dense, params, [X[keep]]))
    scaled = calibrate(dense, params, [X], weights=lambda x: 2.5 * keep)
    check(only(scaled, "w")[1], X, 2.5 * keep)


def tokens(p: Any, x: Any, pad: Any = None) -> Any:
    del pad
    x = jnp.tanh(x @ p["w"]).transpose(1, 0, 2)
    return x.reshape(-1, x.shape[-1]) @ p["v"]


def test_weights_of_padded_tokens() -> None:
    """The axes of the batch are followed through transpose and reshape."""
    params, x = tree(w=(4, 5), v=(5, 2)), numbers(3, 6, 4)
    keep = np.arange(6) < np.array([[2], [6], [4]])
    stats = calibrate(tokens, params, [(x, keep)], weights=lambda x, k: k)
    check(only(stats, "w")[1], x[keep])
    check(only(stats, "v")[1], np.tanh(x[keep] @ params["w"]))
    rows = calibrate(tokens, params, [x], weights=lambda x: np.array([1, 0, 1]))
    same(rows, calibrate(tokens, params, [x[[0, 2]]]))


def test_weights_inside_a_scan() -> None:
    params = tree(w=(3, 4, 4), b=(3, 4))
    keep = np.arange(10) % 2
    got = calibrate(stacked, params, [X], weights=lambda x: keep)
    same(got, calibrate(stacked, params, [X[keep > 0]]))


def test_weights_inside_scans_of_scans() -> None:
    def fn(p: Any, x: Any) -> Any:
        return lax.scan(lambda x, w: (stacked(w, x), None), x, p)[0]

    params = tree(w=(2, 3, 4, 4), b=(2, 3, 4))
    keep = np.arange(10) % 2
    got = calibrate(fn, params, [X], weights=lambda x: keep)
    same(got, calibrate(fn, params, [X[keep > 0]]))
    assert only(got, "w")[1].gram.shape == (2, 3, 1, 4, 4)


def test_weights_where_batches_go_different_ways() -> None:
    params, up = tree(a=(4, 2), b=(4, 2)), np.abs(X)
    keep = np.arange(10) % 3 != 1  # not the first, by which it is decided
    batches = [up, -up, 2 * up]
    got = calibrate(branches, params, batches, weights=lambda x: keep)
    same(got, calibrate(branches, params, [x[keep] for x in batches]))


def test_weights_along_time() -> None:
    """[batch] where the batch stands inside of the time that a scan takes."""
    params, xs = tree(into=(4, 3), again=(3, 3)), numbers(2, 5, 4)
    fn = lambda p, x: recurrent(p, x.transpose(1, 0, 2))
    got = calibrate(fn, params, [xs], weights=lambda x: np.array([1.0, 0.0]))
    check(only(got, "into")[1], xs[0])
    states = np.asarray(fn(params, xs))[:, 0]
    check(
        only(got, "again")[1], np.concatenate([np.zeros((1, 3)), states[:-1]])
    )


def test_rows_that_cannot_be_told_are_refused() -> None:
    params = tree(w=(4, 4))

    def mixed(p: Any, x: Any) -> Any:
        return (numbers(7, 10) @ x) @ p["w"]

    with pytest.raises(ValueError, match=r"'w'.*axes of the weights \(10\)"):
        calibrate(mixed, params, [X], weights=lambda x: np.ones(10))
    with pytest.raises(ValueError, match="of shape"):
        calibrate(dense, tree(**DENSE), [X], weights=lambda x: 1.0)


def test_not_a_number_is_refused_with_the_leaf() -> None:
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"batch 1 has NaN or inf in what 'w'"):
        calibrate(dense, tree(**DENSE), [X, bad])

    def late(p: Any, x: Any) -> Any:
        return jnp.log(x @ p["w"]) @ p["v"]

    with pytest.raises(ValueError, match="'v'"):
        calibrate(late, tree(w=(4, 6), v=(6, 2)), [X])


def test_float16_that_overflows_is_no_inf() -> None:
    params = {"w": jnp.ones((2, 3), jnp.float16)}
    x = jnp.full((3, 2), 300.0, jnp.float16)  # squares above 65504
    stats = calibrate(lambda p, x: x @ p["w"], params, [x])
    np.testing.assert_allclose(stats.moments[0].gram, 3 * 300.0**2)


@pytest.mark.parametrize(
    ("batches", "where", "match"),
    [
        ([], None, "is empty"),
        (X, None, r"iterable of batches.*\[\(x,\)\]"),
        (3, None, "iterable of batches"),
        ([X], "nothing", "nothing"),
        ([X], lambda p: jax.tree.map(lambda _: False, p), "selects no"),
        ([X], lambda p: {"w": False, "b": True, "v": False}, "no selected"),
    ],
)
def test_what_is_refused(batches: Any, where: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        calibrate(dense, tree(**DENSE), batches, where=where)


def test_where_leaves_parameters_out() -> None:
    stats = calibrate(dense, tree(**DENSE), [X], where="v")
    assert stats.paths() == ["v"]
    assert len(stats.moments) == 1
    assert stats.missed == ()


def test_batches_of_one_shape_are_traced_once() -> None:
    traced = []

    def fn(p: Any, x: Any) -> Any:
        traced.append(x.shape)
        return dense(p, x)

    params = tree(**DENSE)
    calibrate(fn, params, [X])
    once = len(traced)
    traced.clear()
    calibrate(fn, params, iter([X] * 4))
    assert (
        len(traced) <= once + 1
    )  # shapes of each batch are not looked up anew
    calibrate(fn, params, [X, X[:3]])


def test_a_tied_weight_has_two_products() -> None:
    params = tree(w=(4, 6))
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T
    (_, first), (_, second) = calibrate(fn, params, [X]).of("w")
    check(first, X)
    check(second, np.tanh(X @ params["w"]))


CUT: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "dense": (dense, tree(**DENSE), X),
    "left": (left, tree(q=(4, 3, 2), out=(3, 2, 5)), X),
    "fused": (fused, tree(qkv=(4, 6)), X),
    "sliced": (sliced, tree(qkv=(4, 6)), X),
    "stacked": (stacked, tree(w=(3, 4, 4), b=(3, 4)), X),
    "transposed": (lambda p, x: x @ p["w"].T, tree(w=(5, 4)), X),
    "merged": (
        lambda p, x: x @ p["w"].transpose(1, 0, 2).reshape(4, 15),
        tree(w=(3, 4, 5)),
        X,
    ),
    "strided": (lambda p, x: x @ p["w"][::2, 1:], tree(w=(8, 4)), X),
    "unrolled": (
        lambda p, x: x @ p["w"][0] @ p["w"][1],
        tree(w=(2, 4, 4)),
        X,
    ),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", CUT)
def test_what_is_seen_can_be_written_back(name: str) -> None:
    fn, params, x = CUT[name]
    stats = calibrate(fn, params, [x])
    assert stats.sites
    for site in stats.sites:
        leaf = params[site.path]
        matrix = site.matrix(leaf)
        np.testing.assert_array_equal(site.write(leaf, matrix), leaf)
        new = site.write(leaf, matrix + 1)
        np.testing.assert_array_equal(site.matrix(new), matrix + 1)
        assert int((new != leaf).sum()) == matrix.size


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_view_can_be_written_back(data: Any) -> None:
    """Random moves and cuts of a parameter, and then a product."""
    from jprune._core.views import look, put

    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    leaf = np.arange(np.prod(shape)).reshape(shape)
    steps: list[Any] = []
    now = leaf
    for _ in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["transpose", "reshape", "slice"]))
        if kind == "transpose":
            order = data.draw(st.permutations(range(now.ndim)))
            steps.append((kind, tuple(order)))
        elif kind == "reshape":
            sizes = data.draw(st.permutations((*now.shape, 1)))
            steps.append((kind, tuple(sizes)))
        else:
            starts = [data.draw(st.integers(0, n - 1)) for n in now.shape]
            strides = [data.draw(st.integers(1, 2)) for _ in now.shape]
            steps.append((kind, tuple(starts), now.shape, tuple(strides)))
        now = np.asarray(look(tuple(steps[-1:]), now))
    seen = look(tuple(steps), jnp.asarray(leaf))
    np.testing.assert_array_equal(seen, now)
    np.testing.assert_array_equal(put(tuple(steps), leaf, seen), leaf)
    new = put(tuple(steps), leaf, -1 - seen)
    np.testing.assert_array_equal(look(tuple(steps), new), -1 - now)
    untouched = np.ones(leaf.size, bool)
    untouched[now.ravel()] = False
    np.testing.assert_array_equal(
        np.ravel(new)[untouched], leaf.ravel()[untouched]
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=() if n in ("autoencoder", "gpt") else pytest.mark.slow
        )
        for n in MODELS
    ],
)
def test_every_product_of_a_model_is_a_site(name: str) -> None:
    fn, params, args = MODELS[name]()
    params = jax.tree.map(lambda x: jnp.asarray(numbers(*x.shape)) ** 2, params)
    stats = calibrate(fn, params, [args])
    found = jprune.trace_products(fn, params, *args)
    assert set(stats.paths()) == {use.path for use in found.uses}
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    values = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in leaves
    }
    back = jax.jit(
        lambda values: [
            site.write(values[site.path], site.matrix(values[site.path]))
            for site in stats.sites
        ]
    )(values)
    for site, leaf in zip(stats.sites, back, strict=True):
        np.testing.assert_array_equal(leaf, values[site.path])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_batches_and_parameters(kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    params = {"w": jnp.asarray(numbers(4, 6)), "v": jnp.asarray(numbers(6, 2))}
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    x = numbers(8, 4)
    wanted = calibrate(fn, params, [x])
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, PartitionSpec("x"))
        split = {
            "w": NamedSharding(mesh, PartitionSpec(None, "y")),
            "v": NamedSharding(mesh, PartitionSpec(None, None)),
        }
        got = calibrate(
            fn, jax.device_put(params, split), [jax.device_put(x, spec)]
        )
    same(jax.device_get(got), jax.device_get(wanted))


NOT_READ = {"indexed"}  # layers found by a counter


@pytest.mark.parametrize("name", ALL)
def test_what_trace_products_finds_is_read(name: str) -> None:
    fn, params, x, _ = ALL[name]
    if name in NOT_READ:
        with pytest.raises(ValueError, match=r"no selected.*by a counter"):
            calibrate(fn, params, [x])
        return
    stats = calibrate(fn, params, [x])
    found = jprune.trace_products(fn, params, x)
    assert set(stats.paths()) == {use.path for use in found.uses}


def test_experts_have_rows_of_their_own() -> None:
    params = {"w": jnp.asarray(numbers(3, 4, 2))}
    x, sizes = jnp.asarray(numbers(9, 4, seed=1)), jnp.array([5, 0, 4])

    def fn(params: Any, x: Any, sizes: Any) -> Any:
        return jax.lax.ragged_dot(x, params["w"], sizes)

    one = calibrate(fn, params, [(x, sizes)]).moments[0]
    for k, mine in enumerate((x[:5], x[:0], x[5:])):
        np.testing.assert_allclose(one.gram[k], mine.T @ mine, rtol=1e-5)
        np.testing.assert_allclose(one.sum[k], mine.sum(0), rtol=1e-5)
    np.testing.assert_array_equal(one.count, [5, 0, 4])


def test_layers_found_by_a_counter_are_said_beside_others() -> None:
    def fn(p: Any, x: Any) -> Any:
        x = lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["w"][i]), x)
        return x @ p["v"]

    stats = calibrate(fn, tree(w=(3, 4, 4), v=(4, 2)), [X])
    assert stats.paths() == ["v"]
    ((path, why),) = stats.missed
    assert path == "w"
    assert "by a counter" in why


def test_long_iterables_show_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm

    shown: list[Any] = []

    def bar(**how: Any) -> Any:
        shown.append((how["desc"], how["delay"], how["disable"]))
        return MagicMock()

    params = tree(**DENSE)
    monkeypatch.setattr(tqdm, "tqdm", bar)
    with_bar = calibrate(dense, params, iter([X[:7], X[7:]]))
    assert shown == [("calibrate", 2.0, None)]  # None: where a terminal is
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    same(with_bar, calibrate(dense, params, iter([X[:7], X[7:]])))


def test_statistics_print_as_a_table() -> None:
    x = np.where(np.arange(4) == 1, 0, X)
    lines = str(calibrate(dense, tree(**DENSE), [x])).split("\n")
    assert [line.split() for line in lines] == [
        ["parameter", "inputs", "rows", "never", "active"],
        ["-" * len(lines[0])],
        ["w", "1", "x", "4", "10", "1"],
        ["v", "1", "x", "6", "10", "0"],
    ]
