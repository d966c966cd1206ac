"""Units of a program, as a graph and as a structure."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compaction_models import MODELS

import jprune
from jprune import allocations


def fn(params, x):
    h = jax.nn.relu(x @ params["w"] + params["b"])
    return jnp.tanh(h @ params["v"] + params["c"]) @ params["u"]


SHAPES = {"w": (4, 8), "b": (8,), "v": (8, 6), "c": (6,), "u": (6, 2)}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.standard_normal(s)) for k, s in SHAPES.items()}


@pytest.fixture
def graph(params):
    return jprune.trace_units(fn, params, jax.ShapeDtypeStruct((1, 4), float))


def kept(masks):
    return int(masks["b"].sum()), int(masks["c"].sum())


def test_graph_of_a_perceptron(graph):
    assert str(graph).splitlines() == [
        "8 units: b[0], v[0], w[1]",
        "6 units: c[0], u[0], v[1]",
        "frozen: u[1], 2 positions: an axis of the output",
        "frozen: w[0], 4 positions: axis 1 of array 0 of the arguments",
    ]


def test_graph_of_a_transformer():
    model = MODELS["gpt"]()
    graph = jprune.trace_units(model.fn, model.params, *model.args)
    pools = {(p.units.shape, len(p.axes)): dict(p.axes) for p in graph.pools}
    assert set(pools) == {
        ((1, 8), 11),  # the residual stream, tied embedding and norms
        ((2, 12), 3),  # hidden units, of each layer
        ((2, 2), 2),  # width of queries and keys, in rotated pairs
        ((2, 2), 3),  # groups of heads, and heads of every group
        ((2, 4), 3),  # width of values
    }
    assert len(graph.pools) == 6
    words = [f for f in graph.frozen if f.path == "emb"]
    assert [(f.axis, f.positions) for f in words] == [(0, 9)]
    assert words[0].reason.startswith("gather")


def test_frozen_says_why(params):
    def softmax(params, x):
        return jax.nn.softmax(x @ params["w"]) @ params["v"]

    graph = jprune.trace_units(softmax, params, jnp.ones((1, 4)))
    reasons = {(f.path, f.axis): f.reason for f in graph.frozen}
    assert reasons["w", 1] == "reduce_max over the axis"
    assert reasons["b", 0] == "not used"


@pytest.mark.slow
def test_score_is_the_sum_of_all_that_belongs_to_a_unit(graph, params):
    masks = jprune.find_masks(params, 0.5, structure=jprune.units(graph))
    scores = (
        abs(params["w"]).sum(0) + abs(params["b"]) + abs(params["v"]).sum(1)
    )
    best = np.zeros(8, bool)
    best[np.argsort(-scores)[:4]] = True
    np.testing.assert_array_equal(masks["b"], best)
    np.testing.assert_array_equal(masks["v"], best[:, None] & masks["c"][None])


def test_a_where_beside_it_is_refused(graph, params):
    with pytest.raises(ValueError, match=r"`find_masks\(where=.*selects pools"):
        jprune.find_masks(params, 0.5, structure=jprune.units(graph), where="w")


@pytest.mark.parametrize(
    ("sparsity", "round_to", "joint", "counts"),
    [
        (0.4, 4, False, (8, 4)),
        (1.0, 1, True, (1, 1)),
    ],
)
def test_pools_keep_multiples_and_are_never_emptied(
    graph, params, sparsity, round_to, joint, counts
):
    allocation = (
        allocations.global_ranking() if joint else allocations.uniform()
    )
    structure = jprune.units(graph, round_to=round_to)
    find = jax.jit(
        lambda p, s: jprune.find_masks(
            p, s, structure=structure, allocation=allocation
        )
    )
    assert kept(find(params, sparsity)) == counts


@pytest.mark.slow
def test_gradual_pruning_of_units(graph, params):
    schedule = optax.linear_schedule(0.0, 0.5, 3)
    for allocation in (allocations.uniform(), allocations.global_ranking()):
        pruner = jprune.prune(
            schedule,
            structure=jprune.units(graph, round_to=2),
            allocation=allocation,
        )
        tx = optax.chain(optax.sgd(0.01), pruner)
        state, now, before = tx.init(params), params, 14
        update = jax.jit(tx.update)
        for _ in range(4):
            grads = jax.tree.map(jnp.ones_like, now)
            updates, state = update(grads, state, now)
            now = optax.apply_updates(now, updates)
            masks = jprune.get_masks(state)
            assert all(n % 2 == 0 for n in kept(masks))
            assert sum(kept(masks)) <= before
            before = sum(kept(masks))
        assert before in (8, 10)  # 4 + 4, or 7 of 14 rounded up twice
        x = np.ones((1, 4))
        small = jprune.compact(fn, now, x, masks=masks)
        assert small.params["w"].shape[1] == kept(masks)[0]


def test_refusals(graph, params):
    with pytest.raises(ValueError, match=r"`units\(round_to=...\)` must be"):
        jprune.units(graph, round_to=0)
    with pytest.raises(
        ValueError, match=r"must be what `trace_units.*got dict"
    ):
        jprune.units(params)
    with pytest.raises(ValueError, match=r"must be an integer >= 1, got 1.5"):
        jprune.units(graph, round_to=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'b' has shape \(3,\)"):
        jprune.find_masks(
            params | {"b": jnp.ones(3)}, 0.5, structure=jprune.units(graph)
        )
    method: Any = {
        "structure": jprune.units(graph),
        "allocation": allocations.erdos_renyi(),
    }
    with pytest.raises(ValueError, match="2 pools span several"):
        jprune.find_masks(params, 0.5, **method)
    with pytest.raises(ValueError, match="2 pools span several"):
        jprune.prune(0.5, **method).init(params)
    nothing = jprune.trace_units(
        lambda p, x: x @ p, jnp.ones((4, 2)), jnp.ones((1, 4))
    )
    with pytest.raises(ValueError, match="nothing can be removed"):
        jprune.units(nothing)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.slow
def test_meshes(kind, params):
    axis = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(axis,))
    spec = jax.sharding.PartitionSpec
    graph = jprune.trace_units(fn, params, np.ones((1, 4)))
    wanted = jprune.find_masks(params, 0.5, structure=jprune.units(graph))
    plain = jprune.compact(fn, params, np.ones((1, 4)), masks=wanted)
    with jax.set_mesh(mesh):
        where = {"w": spec(None, "x"), "u": spec(None, "x")}
        divided = {
            k: jax.device_put(p, where.get(k, spec()))
            for k, p in params.items()
        }
        masks = jprune.find_masks(divided, 0.5, structure=jprune.units(graph))
        jax.tree.map(np.testing.assert_array_equal, masks, wanted)
    # Where no mesh is set, that of the arrays is taken.
    masks = jprune.find_masks(divided, 0.5, structure=jprune.units(graph))
    jax.tree.map(np.testing.assert_array_equal, masks, wanted)
    with jax.set_mesh(mesh):
        small = plain.plan.apply(divided)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.shape, b.shape),
        small,
        plain.params,
    )


@pytest.mark.slow
def test_where_selects_pools():
    def fn(p, x):
        h = jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"])
        return h @ p["c"]

    shapes = {"a": (4, 8), "b": (8, 6), "c": (6, 3)}
    params = {
        k: jax.random.normal(jax.random.key(1), s) for k, s in shapes.items()
    }
    graph = jprune.trace_units(fn, params, jnp.ones((1, 4)))
    for where in ("c", r"b\[1\]", lambda pool: ("c", 0) in pool.axes):
        structure = jprune.units(graph, where=where)
        masks = jprune.find_masks(params, 0.5, structure=structure)
        assert isinstance(masks["a"], optax.MaskedNode)
        assert int(masks["c"].sum()) == 9
        assert int(masks["b"].sum()) == 24
        small = jprune.compact(fn, params, jnp.ones((1, 4)), masks=masks)
        assert small.params["c"].shape == (3, 3)
    # What is not selected costs what it does.
    costly = jprune.units(graph, where=where, by="parameters")
    masks = jprune.find_masks(params, 0.25, structure=costly)
    small = jprune.compact(fn, params, jnp.ones((1, 4)), masks=masks)
    left = sum(x.size for x in jax.tree.leaves(small.params))
    assert left <= 0.75 * 98 < left + 11
    with pytest.raises(ValueError, match=r"no_such_thing.*selects no pool of"):
        jprune.units(graph, where="no_such_thing")
    with pytest.raises(
        ValueError, match=r"`units\(where=.*no regular expression"
    ):
        jprune.units(graph, where="(")
    with pytest.raises(ValueError, match=r"`units\(where=\.\.\.\)` must be"):
        jprune.units(graph, where=3)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"`prune\(where=.*`units\(graph, where"
    ):
        jprune.prune(0.5, structure=structure, where="c").init(params)


ONE_RANKING = allocations.global_ranking()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["units", "multiply_adds"])
@pytest.mark.parametrize("sparsity", [0.9, 1.0])
def test_in_one_ranking_no_layer_becomes_a_bottleneck(
    by: str, sparsity: float
) -> None:
    """Units of `w` have large scores, so that one ranking takes all of `v`."""
    params = {"w": 100 * jnp.ones((4, 100)), "v": jnp.ones((100, 40))}
    params |= {"u": jnp.ones((40, 2))}

    def net(p: Any, x: Any) -> Any:
        return jax.nn.relu(jax.nn.relu(x @ p["w"]) @ p["v"]) @ p["u"]

    graph = jprune.trace_units(net, params, jnp.ones((1, 4)))

    def units_left(**options: Any) -> int:
        masks = jprune.find_masks(
            params,
            sparsity,
            structure=jprune.units(graph, by=by, **options),
            allocation=ONE_RANKING,
        )
        return int(masks["u"].any(1).sum())

    assert units_left(floor=0.0) == 1
    assert units_left() == 2  # a twentieth of 40
    assert units_left(floor=0.11) == 5  # rounded up


@pytest.mark.slow
@pytest.mark.parametrize("by", ["units", "parameters", "multiply_adds"])
@pytest.mark.parametrize("allocation", [allocations.uniform(), ONE_RANKING])
@pytest.mark.sweep(6)
def test_sparsities_are_fractions_of_the_first_model(
    graph: Any, params: Any, by: str, allocation: Any
) -> None:
    """Pruned in two steps as in one."""
    x = jnp.ones((1, 4))

    def masks_of(params: Any, sparsity: Any, structure: Any) -> Any:
        return jprune.find_masks(
            params, sparsity, structure=structure, allocation=allocation
        )

    masks = masks_of(params, 0.4, jprune.units(graph, by=by))
    small = jprune.compact(fn, params, x, masks=masks)
    second = jprune.trace_units(small.fn, small.params, x)
    rest = jprune.units(second, by=by, of=graph)
    for sparsity in (0.0, 0.2, 0.4):  # nothing comes back
        here = masks_of(small.params, sparsity, rest)
        assert all(jax.tree.leaves(jax.tree.map(jnp.all, here)))
    less = masks_of(small.params, 0.7, rest)
    traced = jax.jit(lambda s: masks_of(small.params, s, rest))(0.7)
    assert kept(traced) == kept(less)
    if not allocation.joint:
        at_once = masks_of(params, 0.7, jprune.units(graph, by=by))
        assert kept(less) == kept(at_once)
    elif by == "units":
        assert sum(kept(less)) == 4  # of 14
    else:
        counts = jprune.report.cost(small.fn, small.params, x, masks=less)
        whole = jprune.report.cost(fn, params, x).dense
        assert getattr(counts.compact, by) <= 0.3 * getattr(whole, by)


@pytest.mark.slow
def test_a_pool_of_which_nothing_more_can_go_counts_in_the_whole(
    graph: Any, params: Any
) -> None:
    one = {"c": jnp.arange(6) == 2, "v": jnp.arange(6) == 2}
    small = jprune.compact(fn, params, jnp.ones((1, 4)), masks=one)
    second = jprune.trace_units(small.fn, small.params, jnp.ones((1, 4)))
    assert [pool.name for pool in second.pools] == ["b[0]"]
    masks = jprune.find_masks(
        small.params,
        0.5,
        structure=jprune.units(second, of=graph),
        allocation=ONE_RANKING,
    )
    assert int(masks["b"].sum()) == 6  # with the one of `c` 7 of 14


def test_another_model_is_refused(graph: Any, params: Any) -> None:
    half = {k: v[..., :4] for k, v in params.items() if k in "wb"}
    less = params | half | {"v": params["v"][:4]}
    small = jprune.trace_units(fn, less, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"'b\[0\]' with 8 units .* 4 units"):
        jprune.units(graph, of=small)
    with pytest.raises(ValueError, match=r"`units\(of=...\)` must be what"):
        jprune.units(graph, of=params)
    with pytest.raises(ValueError, match=r"`units\(floor=...\)` .* got 1.5"):
        jprune.units(graph, floor=1.5)


@pytest.mark.slow
def test_several_pruners_of_units_in_one_chain(graph: Any, params: Any) -> None:
    """Each prunes pools of its own; both mask `v`, along different axes."""
    first, second = (jprune.units(graph, where=x) for x in (r"^b", r"^c"))
    tx = optax.chain(
        optax.sgd(0.1),
        jprune.prune(0.25, structure=first),
        jprune.prune(0.5, structure=second),
    )
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    masks = jprune.get_masks(state)
    assert kept(masks) == (6, 3)
    assert int(masks["v"].sum()) == 18
    jax.tree.map(
        lambda p, m: np.testing.assert_array_equal(p != 0, m), params, masks
    )
    small = jprune.compact(fn, params, jnp.ones((1, 4)))
    assert small.plan.sizes == {"b[0]": 6, "c[0]": 3}
    taken = small.take(state)
    assert jax.tree.map(jnp.shape, jprune.get_masks(taken)) == jax.tree.map(
        jnp.shape, small.params
    )


def test_shares_for_pools(graph: Any, params: Any) -> None:
    given = allocations.given({r"v\[1\]": 0.5, r"w": 0.25})
    structure = jprune.units(graph)

    def masks_of(sparsity: Any) -> Any:
        return jprune.find_masks(
            params, sparsity, structure=structure, allocation=given
        )

    assert kept(masks_of(1.0)) == kept(jax.jit(masks_of)(1.0)) == (6, 3)
    assert kept(masks_of(0.5)) == (7, 4)  # round(.5 * .25 * 8), (.5 * .5 * 6)
    wrong = allocations.given({"z": 1.0})
    with pytest.raises(ValueError, match=r"matches none of: b\[0\], c\[0\]"):
        jprune.find_masks(params, 1.0, structure=structure, allocation=wrong)


@pytest.mark.slow
def test_scores_keep_their_precision():
    """Units whose float64 scores are one float32 rank by their own numbers."""
    with jax.enable_x64(True):
        tiny = np.array([0.0, 3e-12, 1e-12, 2e-12])
        params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2)) + tiny[:, None]}
        x = jax.ShapeDtypeStruct((1, 3), float)
        graph = jprune.trace_units(lambda p, x: x @ p["w"] @ p["v"], params, x)
        structure = jprune.units(graph)
        (scores,) = structure.to_units(params)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores[0] - 5, 2 * tiny, atol=1e-15)
        masks = jprune.find_masks(params, 0.5, structure=structure)
        assert masks["v"][:, 0].tolist() == [False, True, False, True]
        narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        assert structure.to_units(narrow)[0].dtype == np.float32


def test_pools_of_the_same_axes_have_names_of_their_own() -> None:
    """Heads and their width are parts of the same axes."""

    def attention(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = ((x @ p[name]).reshape(*x.shape[:2], 6, 4) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        found = jnp.einsum("bhts,bshd->bthd", scores, v)
        return found.reshape(*x.shape[:2], -1) @ p["o"]

    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((5, 6, 4)) for n in "qkv"}
    weights["o"] = rng.standard_normal((5, 6, 4))
    for name in "vo":
        weights[name][:, [0, 3]] = 0  # heads
        weights[name][:, :, 2] = 0
    for name in "qk":
        weights[name][:, [0, 3]] = 0
        weights[name][:, :, [0, 3]] = 0
    kernels = {n: w.reshape(5, 24) for n, w in weights.items()}
    kernels["o"] = kernels["o"].T
    small = jprune.compact(attention, kernels, jnp.ones((1, 3, 5)))
    assert small.plan.sizes == {"k[1]": 4, "o[0]": 3, "q[1]": 2}

    def fused(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(x @ p["qkv"], [32, 48], -1)
        q = q.reshape(*x.shape[:2], 4, 2, 4)
        k, v = (a.reshape(*x.shape[:2], 4, 4) for a in (k, v))
        scores = jax.nn.softmax(jnp.einsum("btgrd,bsgd->bgrts", q, k))
        found = jnp.einsum("bgrts,bsgd->btgrd", scores, v)
        return found.reshape(*x.shape[:2], -1) @ p["o"]

    shapes = {"qkv": jnp.ones((5, 64)), "o": jnp.ones((32, 5))}
    graph = jprune.trace_units(fused, shapes, jnp.ones((1, 3, 5)))
    found = {p.name: p.units.shape[1] for p in graph.pools}
    assert found == {"o[0]": 4, "o[0], 2": 4, "qkv[1]": 2, "qkv[1], 2": 4}
