"""How many units each pool keeps: published numbers, exact totals."""

import functools
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hypothesis_numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocations, structures
from jprune._core import counts as _counts
from jprune.allocations import Pools, erdos_renyi, global_ranking, uniform
from jprune.allocations._divisor import divide

SHAPES = [(2, 4), (3, 6), (2, 4, 6)]


def pools_of(shapes: list[tuple[int, ...]]) -> Pools:
    sizes = np.array([np.prod(s) for s in shapes], np.int64)
    return Pools(np.ones_like(sizes), sizes, shapes, None)


# From the test of the distribution in JaxPruner; at .8 it prints .556, .70 and
# .85: it rounds zeros down in each leaf, .782 in all.
PUBLISHED = [
    (True, 1.0, 0.5, [0, 0.31, 0.655]),
    (False, 1.0, 0.5, [0.21, 0.47, 0.56]),
    (True, 1.0, 0.8, [0.589, 0.726, 0.863]),
    (True, 2.0, 0.5, [0, 0.033, 0.758]),
]


@pytest.mark.parametrize(("kernel", "power", "sparsity", "found"), PUBLISHED)
def test_published_erdos_renyi(
    kernel: bool, power: float, sparsity: float, found: list[float]
) -> None:
    """Counts are within one unit of the published sparsities."""
    rule = erdos_renyi(kernel, power)
    params = [jnp.ones(s) for s in SHAPES]
    masks = jprune.find_masks(params, sparsity, allocation=rule)
    kept = [int(m.sum()) for m in masks]
    assert sum(kept) == 74 - round(74 * sparsity)
    for count, shape, wanted in zip(kept, SHAPES, found, strict=True):
        assert abs(count - np.prod(shape) * (1 - wanted)) < 1


def test_published_densities() -> None:
    """The same before rounding, to the published digits."""
    sizes = np.array([8, 18, 48])
    for kernel, power, sparsity, wanted in PUBLISHED:
        shapes = [s if kernel else s[-2:] for s in SHAPES]
        raw = np.array([(sum(s) / np.prod(s)) ** power for s in shapes])
        found = allocations._erdos_renyi._densities(
            raw, sizes, (1 - sparsity) * 74
        )
        np.testing.assert_allclose(1 - found, wanted, atol=4e-3)


def weights_of(shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Densities go with sums of dimensions by products, quotas with sums."""
    return np.array([sum(shape) for shape in shapes], np.float64)


@st.composite
def layers(draw: Any) -> list[tuple[int, ...]]:
    sizes = st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple)
    return draw(st.lists(sizes, min_size=4, max_size=4))


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(layers(), st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_divisor_method(shapes: Any, sparsities: list[float]) -> None:
    """Exact totals, no paradox, and what defines the method of Webster."""
    pools, weights = pools_of(shapes), weights_of(shapes)
    before = pools.sizes
    for sparsity in sorted(sparsities):
        found = np.asarray(erdos_renyi().counts(pools, sparsity))
        total = pools.sizes.sum()
        assert found.sum() == total - round(sparsity * total)
        assert ((found >= 0) & (found <= before)).all()
        before = found
        # Whose next unit would come before the last of another?
        last = np.where(found > 0, (found - 0.5) / weights, 0)
        after = np.where(found < pools.sizes, (found + 0.5) / weights, np.inf)
        assert last.max() <= after.min() * (1 + 1e-9)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    layers(),
    st.floats(0, 1),
    st.floats(-4, 4),
    st.sampled_from([1, 2**10, 2**20]),
)
def test_a_program_divides_as_the_host(
    shapes: Any, share: float, power: float, factor: int
) -> None:
    """It has no 64 bits, and the same counts."""
    sizes = pools_of(shapes).sizes * factor // 4
    hypothesis.assume((sizes < 2**31).all())
    total = round(share * int(sizes.sum()))
    logs = power * np.log2(weights_of(shapes)) + np.log2(np.maximum(sizes, 1))
    traced = divide(logs, sizes, _counts.count_of(total))
    np.testing.assert_array_equal(traced, divide(logs, sizes, total))
    assert np.asarray(traced, np.int64).sum() == total


def test_quotas_are_met_within_a_unit() -> None:
    """Of the densities of the paper, in float64."""
    shapes = [(784, 300), (300, 100), (100, 10), (3, 3, 16, 32), (5, 5, 1, 8)]
    pools = pools_of(shapes)
    raw = weights_of(shapes) / pools.sizes
    for sparsity in np.linspace(0, 1, 41):
        total = pools.sizes.sum() - round(sparsity * pools.sizes.sum())
        densities = allocations._erdos_renyi._densities(raw, pools.sizes, total)
        found = np.asarray(erdos_renyi().counts(pools, float(sparsity)))
        assert abs(found - densities * pools.sizes).max() <= 1


def test_erdos_renyi_on_the_way_to_a_target() -> None:
    """The rule at the target, and before it the same part of every loss."""
    pools, target = pools_of([(64, 300), (300, 100), (100, 10)]), 0.99
    rule, there = erdos_renyi(target=target), erdos_renyi()
    traced = jax.jit(lambda s: rule.counts(pools, s))
    last = np.asarray(there.counts(pools, target))
    np.testing.assert_array_equal(rule.counts(pools, target), last)
    np.testing.assert_array_equal(traced(1.0), last)
    lost, before = pools.sizes - last, pools.sizes
    for part in (0.0, 0.1, 0.5, 0.9):
        found = np.asarray(rule.counts(pools, part * target))
        assert abs(pools.sizes - part * lost - found).max() <= 1
        assert found.sum() == round((1 - part * target) * pools.sizes.sum())
        assert (found <= before).all()
        before = found
    w, alike = jnp.ones((4, 4)), jprune.structures.fan_in()
    with pytest.raises(ValueError, match=r"up to a sparsity of 0.5, got 0.75"):
        jprune.find_masks(w, 0.75, allocation=erdos_renyi(target=0.5))
    with pytest.raises(ValueError, match="leave `target` out"):
        jprune.find_masks(w, 0.5, structure=alike, allocation=rule)


LARGE = [(4096, 4096)] * 3 + [(30000, 60000), (64, 10), (3, 3, 64, 128)]
LARGE += [(46340, 46340)] * 500  # nearly 2**31 each, and 2**40 in all
TRACED = jax.jit(lambda s: erdos_renyi().counts(pools_of(LARGE), s))


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 1.0, float("nan")])
def test_totals_of_a_trillion(sparsity: float) -> None:
    pools, counts = pools_of(LARGE), TRACED(sparsity)
    found = np.asarray(counts, np.int64)
    left = _counts.left_of(jnp.float32(sparsity), pools.sizes.sum())
    assert found.sum() == int(left.high) * 2**16 + int(left.low)
    assert ((found >= 0) & (found <= pools.sizes)).all()
    lost = 0.0 if np.isnan(sparsity) else float(np.float32(sparsity))
    same = erdos_renyi().counts(pools, lost)
    np.testing.assert_array_equal(found, same)


def normalized(name: str, x: jax.Array) -> jax.Array:
    """Scores of units as an allocation compares them."""
    rule = global_ranking(name).normalize
    assert rule is not None
    return rule(x)


def test_lamp_of_its_paper() -> None:
    """Equation 1 of https://arxiv.org/abs/2010.07611, worked out by hand."""
    scores = normalized("lamp", jnp.array([[1.0, 2, 3, 4]]))
    found = np.asarray(scores, np.float64)
    scores = (found / found[0, 3]) ** 2  # roots, times one factor for all
    np.testing.assert_allclose(scores, [[1 / 30, 4 / 29, 9 / 25, 1]], rtol=1e-6)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TINY = float(np.finfo(np.float32).tiny)  # what is below may be taken for 0


def by_norm(x: np.ndarray) -> np.ndarray:
    return x / max(np.linalg.norm(x), 1e-300)


def lamp(x: np.ndarray) -> np.ndarray:
    order = np.argsort(-x, kind="stable")
    scores = np.empty_like(x)
    scores[order] = x[order] / np.sqrt(np.cumsum(x[order] ** 2))
    return scores


@pytest.mark.parametrize("normalize", ["l2", "lamp"])
@hypothesis.given(
    x=hypothesis_numpy.arrays(
        np.float32, (2, 5), elements=FLOATS.filter(lambda v: abs(v) >= TINY)
    )
)
@hypothesis.example(x=np.geomspace(1e-37, 1e38, 10, dtype=np.float32)[:, None])
@hypothesis.settings(deadline=None, max_examples=60)
def test_scores_of_all_sizes_keep_their_order(
    normalize: str, x: np.ndarray
) -> None:
    """In float64 ratios and their squares are no smaller than floats are."""
    x = x.reshape(2, 5)
    x = np.abs(x) if normalize == "lamp" else x
    rule = {"l2": by_norm, "lamp": lamp}[normalize]
    wanted = np.stack([rule(row) for row in x.astype(np.float64)]) * 2.0**126
    found = NORMALIZED[normalize](x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=TINY)


NORMALIZED = {
    name: jax.jit(lambda x, name=name: normalized(name, x))
    for name in ("l2", "lamp")
}


def test_normalised_ranking() -> None:
    """JaxPruner's test of its global pruners, which normalise by leaf."""
    params = {
        "w": jnp.array([0.1, 0.9, -0.2, 0.5]),
        "w2": jnp.array([0.7, 0.8]),
    }
    rule = global_ranking("l2")
    masks = jprune.find_masks(params, 0.5, allocation=rule, where=True)
    assert masks["w"].tolist() == [False, True, False, False]
    assert masks["w2"].tolist() == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["l2", "lamp"])
@pytest.mark.sweep(2)
def test_scores_that_are_not_finite(normalize: str) -> None:
    """They stay what they are, and change no other score."""
    function = functools.partial(normalized, normalize)
    x = jnp.array([[1.0, jnp.nan, 2, -jnp.inf, 3, jnp.inf, 4, 0]])
    rest = np.array([0, 2, 4, 6, 7])
    alone = np.asarray(function(x[:, rest]))
    found = np.asarray(function(x))
    np.testing.assert_array_equal(found[:, rest], alone)
    np.testing.assert_array_equal(
        found[:, [1, 3, 5]], x[:, jnp.array([1, 3, 5])]
    )
    zeros = function(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(zeros, np.zeros((2, 3)))
    huge = function(x[:, rest] * 1e37)
    np.testing.assert_allclose(huge, alone, rtol=1e-6)


@pytest.mark.parametrize("low", [0, -9])
def test_lamp_keeps_the_order_of_a_layer(low: int) -> None:
    """That of scores with signs, too: their squares forget it."""
    x = jnp.asarray(np.random.default_rng(0).integers(low, 9, (1, 200)) * 1.0)
    scores = normalized("lamp", x)
    order = jnp.argsort(x, descending=True, stable=True)
    other = jnp.argsort(scores, descending=True, stable=True)
    np.testing.assert_array_equal(order, other)


@pytest.mark.parametrize(
    "normalize",
    [
        pytest.param(None, marks=pytest.mark.slow),
        pytest.param("l2", marks=pytest.mark.slow),
        "lamp",
    ],
)
def test_every_layer_keeps_its_share(normalize: str | None) -> None:
    rng = np.random.default_rng(1)
    params = {
        "a": jnp.asarray(rng.normal(size=(10, 10)) * 1e-3),
        "b": jnp.asarray(rng.normal(size=(10, 10))).at[0].set(jnp.nan),
    }
    rule = global_ranking(normalize, min_density=0.1)
    find = jax.jit(
        lambda s, m=None: jprune.find_masks(params, s, allocation=rule, masks=m)
    )
    masks = None
    for sparsity, total in [(0.5, 100), (0.875, 25), (0.95, 20), (1.0, 20)]:
        found = find(sparsity, masks)
        kept = {k: int(m.sum()) for k, m in found.items()}
        assert sum(kept.values()) == total
        assert min(kept.values()) >= 10
        if masks is not None:
            for k in params:
                assert not np.any(found[k] & ~masks[k])
        masks = found
    assert masks is not None
    best = jnp.argsort(-jnp.abs(params["a"]).ravel())[:10]
    assert bool(masks["a"].ravel()[best].all())


def test_a_floor_under_masks_of_another_shape() -> None:
    """What is kept comes first, also where a layer has less than its share."""
    params = {"a": jnp.arange(10.0)[None], "b": 10 + jnp.arange(10.0)[None]}
    masks = {"a": jnp.zeros((1, 10), bool), "b": jnp.ones((1, 10), bool)}
    rule = global_ranking(min_density=0.2)

    def kept(sparsity: float) -> list[int]:
        found = jprune.find_masks(
            params, sparsity, allocation=rule, masks=masks
        )
        return [int(m.sum()) for m in found.values()]

    assert kept(0.6) == [0, 8]  # pruned stays pruned
    assert kept(0.4) == [2, 10]  # what returns first is the share


def test_a_floor_says_what_it_reaches() -> None:
    params = {"a": jnp.ones((2, 5)), "b": jnp.ones((3, 5))}
    rule = global_ranking(min_density=0.25)  # 3 of 10 and 4 of 15
    message = (
        r"`global_ranking\(min_density=0.25\)` keeps at least 7 of 25 units "
        r"and meets no sparsity above 0.72, got 0.8"
    )
    with pytest.raises(ValueError, match=message):
        jprune.find_masks(params, 0.8, allocation=rule)
    with pytest.raises(ValueError, match=message):
        jprune.prune(0.8, allocation=rule).init(params)
    jprune.prune(0.72, allocation=rule).init(params)
    tx = jprune.prune(lambda c: 0.8, allocation=rule)
    _, state = tx.update(params, tx.init(params), params)
    assert sum(int(m.sum()) for m in state.masks.values()) == 7


@pytest.mark.slow
def test_leaves_and_trees_without_weights() -> None:
    """A part of `optax.partition` may get nothing, a layer have no outputs."""
    empty = [{}, {"a": optax.MaskedNode()}]
    params = {"a": jnp.ones((4, 6)), "b": jnp.ones((0, 3))}
    stack = structures.unstructured(batch_axis=0)
    for rule in (uniform(), erdos_renyi(), global_ranking("lamp", 0.1)):
        for tree in empty:
            assert jprune.find_masks(tree, 0.5, allocation=rule) == tree
        masks = jprune.find_masks(params, 0.5, allocation=rule, structure=stack)
        assert (masks["a"].sum(), masks["b"].shape) == (12, (0, 3))
    masks = jprune.find_masks(params, 0.5, structure=structures.n_m(2, 4))
    assert (masks["a"].sum(), masks["b"].shape) == (12, (0, 3))


def test_erdos_renyi_keeps_scalars() -> None:
    params = {"a": jnp.ones((4, 6)), "b": jnp.ones(())}
    masks = jprune.find_masks(
        params, 0.5, allocation=erdos_renyi(), where={"a": True, "b": True}
    )
    assert (int(masks["a"].sum()), bool(masks["b"])) == (12, True)


def test_given_shares() -> None:
    params = {
        "a": jnp.ones((4, 6)),
        "ab": jnp.ones((2, 5)),
        "c": jnp.ones((4, 4)),
    }
    shares = allocations.given({"a/|^a$": 0.75, "b": 0.5})
    for sparsity, kept in [
        (1.0, (6, 5, 16)),
        (0.5, (15, 8, 16)),
        (0, (24, 10, 16)),
    ]:
        masks = jprune.find_masks(params, sparsity, allocation=shares)
        assert tuple(int(m.sum()) for m in masks.values()) == kept
    tx = jprune.prune(
        optax.linear_schedule(0.0, 1.0, 4), allocation=shares, every=2
    )
    state = tx.init(params)
    grads = jax.tree.map(jnp.zeros_like, params)
    for _ in range(6):
        _, state = tx.update(grads, state, params)
    assert int(jprune.get_masks(state)["a"].sum()) == 6
    two_of_four = jprune.find_masks(
        {"a": jnp.ones((4, 6)), "c": jnp.ones((4, 4))},
        1.0,
        structure=structures.n_m(2, 4),
        allocation=allocations.given({"a": 0.5}),
    )
    assert [int(m.sum()) for m in two_of_four.values()] == [12, 16]


MATRICES = {"a": (4, 4), "b": (16, 16)}
BY_SHAPE, ALIKE = [14, 54], [4, 64]  # of 16 and 256 at .75
DEFAULTS: list[tuple[dict[str, Any], Any, list[int]]] = [
    (MATRICES, structures.unstructured(), BY_SHAPE),
    (MATRICES, structures.fan_in(), [12, 48]),  # 13.6 and 54.4, per output
    (MATRICES, structures.block((2, 2)), [12, 56]),  # of 4
    (MATRICES, structures.n_m(1, 4), ALIKE),
    (
        {"a": (1, 2, 2, 4), "b": (16, 16)},
        structures.unstructured(),
        [15, 53],
    ),
    # Two axes beside those that stack layers.
    (
        {"a": (2, 4, 4), "b": (2, 16, 16)},
        structures.unstructured(batch_axis=0),
        [28, 108],
    ),
    # Heads, or a stack: who knows?
    ({"a": (4, 2, 2), "b": (16, 16)}, structures.unstructured(), ALIKE),
    ({"a": (16,), "b": (16, 16)}, structures.unstructured(), ALIKE),
    (
        {"a": (4, 2, 2), "b": (16, 4, 4)},
        structures.group(1, in_axis=0, out_axis=(1, 2)),
        BY_SHAPE,
    ),
]


def kept_of(masks: Any) -> list[int]:
    return [int(mask.sum()) for mask in jax.tree.leaves(masks)]


@pytest.mark.parametrize(("shapes", "structure", "kept"), DEFAULTS, ids=str)
@pytest.mark.sweep(6)
def test_the_default_allocation(
    shapes: Any, structure: Any, kept: list[int]
) -> None:
    """The same in every call; by shape only where the shape is understood."""
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
    how: Any = {"structure": structure, "where": dict.fromkeys(params, True)}
    masks = jprune.find_masks(params, 0.75, **how)
    rule = uniform() if kept == ALIKE else erdos_renyi()
    same = jprune.find_masks(params, 0.75, allocation=rule, **how)
    assert kept_of(masks) == kept_of(same) == kept
    tx = jprune.prune(0.75, **how)
    _, state = tx.update(params, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, state.masks, masks)
    sparse = jprune.sparse_evolution(
        optax.sgd(0.1), 0.75, fraction=0.0, **how
    ).init(params)
    assert kept_of(sparse.masks) == kept_of(masks)


@pytest.mark.slow
def test_the_default_of_units_is_uniform() -> None:
    """Which are lists, as parameters may be."""
    params = [jnp.ones((4, 8)), jnp.ones((8, 64)), jnp.ones((64, 2))]
    graph = jprune.trace_units(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[2],
        params,
        jnp.ones((1, 4)),
    )
    structure = jprune.units(graph)
    masks = jprune.find_masks(params, 0.5, structure=structure)
    assert int(masks[0].any(0).sum()) == 4
    assert int(masks[2].any(1).sum()) == 32
    with pytest.raises(ValueError, match=r"`erdos_renyi.*pools span several"):
        jprune.find_masks(
            params[:2],
            0.5,
            structure=jprune.units(graph),
            allocation=erdos_renyi(),
        )


def test_one_leaf_keeps_as_many_either_way() -> None:
    w = jnp.arange(1.0, 82.0).reshape(9, 9)
    for sparsity in np.linspace(0, 1, 11):
        found = jprune.find_masks(w, float(sparsity))
        same = jprune.find_masks(w, float(sparsity), allocation=uniform())
        np.testing.assert_array_equal(found, same)


@pytest.mark.slow
def test_dimensions_are_those_of_the_product() -> None:
    """Heads and width are the outputs together."""
    shapes = {"q": (16, 4, 8), "k": (64, 2, 8), "out": (4, 8, 16)}
    params = {k: jnp.ones(s) for k, s in shapes.items()}

    def fn(p: Any, x: Any, y: Any) -> Any:
        scores = jnp.einsum("d,dhw->hw", x, p["q"])
        keys = jnp.einsum("d,dhw->hw", y, p["k"])
        heads = scores + jnp.tile(keys, (2, 1))
        return jnp.einsum("hw,hwd->d", heads, p["out"])

    products = jprune.trace_products(fn, params, jnp.ones(16), jnp.ones(64))
    found = jprune.find_masks(
        params, 0.75, structure=structures.group(1, axes=products)
    )
    flat = {"k": (64, 16), "out": (32, 16), "q": (16, 32)}
    wanted = jprune.find_masks(
        {k: jnp.ones(s) for k, s in flat.items()},
        0.75,
        allocation=erdos_renyi(),
    )
    assert kept_of(found) == kept_of(wanted)


ERRORS: list[tuple[str, Callable[[], Any]]] = [
    (
        "`global_ranking(normalize=...)` must be None, 'l2' or 'lamp', got 'l'",
        lambda: global_ranking("l"),
    ),
    (
        "`global_ranking(min_density=...)` must be a number in [0, 1], got 1.5",
        lambda: global_ranking(min_density=1.5),
    ),
    (
        "`global_ranking(min_density=...)` must be a number",
        lambda: global_ranking(min_density="some"),  # type: ignore[arg-type]
    ),
    (
        "`given(shares)` must be a dict from regular expressions to shares",
        lambda: allocations.given(0.5),  # type: ignore[arg-type]
    ),
    (
        "`given({'(': ...})` is no regular expression",
        lambda: allocations.given({"(": 0.5}),
    ),
    (
        "`given({'a': ...})` must be a number in [0, 1], got 90",
        lambda: allocations.given({"a": 90.0}),
    ),
    (
        "`erdos_renyi(power=...)` must be a finite number, got inf",
        lambda: erdos_renyi(power=float("inf")),
    ),
    (
        "`erdos_renyi(target=...)` must be a number in [0, 1], got 99",
        lambda: erdos_renyi(target=99),
    ),
]


@pytest.mark.parametrize(("message", "make"), ERRORS)
def test_refused(message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("counts", [[3], [3, 2, 1]])
def test_counts_for_other_leaves_are_refused(counts: list[int]) -> None:
    rule = jprune.allocations.Allocation(lambda *_: np.array(counts))
    params = [jnp.ones((3, 4, 5)), jnp.ones((3, 2, 5))]
    structure = jprune.structures.unstructured(batch_axis=0)
    with pytest.raises(ValueError, match="argument 2 is"):
        jprune.find_masks(params, 0.5, structure=structure, allocation=rule)


@pytest.mark.parametrize(
    "counts",
    [
        [3, [1, 2, 3]],
        np.array([[3], [2]]),
        np.array([3, np.array([1, 2, 3])], object),
        jnp.array([3, 2]),
    ],
    ids=str,
)
def test_counts_of_any_form(counts: Any) -> None:
    rule = jprune.allocations.Allocation(lambda *_: counts)
    params = [jnp.ones((3, 4, 5)), jnp.ones((3, 2, 5))]
    structure = jprune.structures.unstructured(batch_axis=0)
    masks = jprune.find_masks(params, 0.5, structure=structure, allocation=rule)
    for mask, count in zip(masks, counts, strict=True):
        np.testing.assert_array_equal(
            mask.sum((1, 2)), np.broadcast_to(np.asarray(count), 3)
        )
