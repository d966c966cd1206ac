"""Exact selection, against a sort and whole numbers."""

import re
from fractions import Fraction

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import selection
from jprune._core import counts as _counts
from jprune._core.trees import concatenate_many
from jprune.jaxprs import versions as _jax
from jprune.selection import kernels as _kernels
from jprune.selection import select
from jprune.selection.ranking import select_few

top_k_mask = jax.jit(selection.top_k_mask)
DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32]
HARD = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-40, -1e-40, 6e-8, 1.0]
SHAPES = [(3, 4), (), (0,), (7,), (2, 3, 2)]
FEW = [(3, 4), (1, 2, 3), (0, 4), (2, 0), (0,), (1, 9)]


@pytest.fixture(scope="module", autouse=True)
def counted():
    """Few units are counted too, as many are."""
    select.SORTED, before = -1, select.SORTED
    yield
    select.SORTED = before
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64, None])
@pytest.mark.parametrize("with_kept", [False, True])
def test_few_are_sorted_to_the_same_masks(with_kept, dtype, monkeypatch):
    rng = np.random.default_rng(0)

    def found(number, leaves, kept, wanted):
        kept = kept if with_kept else None
        monkeypatch.setattr(select, "SORTED", number)
        jax.clear_caches()
        jitted = jax.jit(select.select)
        return [
            joined(jitted(leaves, counts, kept))
            for k in wanted
            for counts in (
                _counts.count_of(k),
                np.resize([k, 1, 2], 7).astype(np.int32),
            )
        ]

    with jax.enable_x64(dtype == jnp.float64):
        leaves = [
            jnp.asarray(rng.choice(HARD, shape), dtype or DTYPES[i % 3])
            for i, shape in enumerate(FEW)
        ]
        kept = [jnp.asarray(rng.random(x.shape) < 0.5) for x in leaves]
        wanted = list(map(np.int32, (0, 1, 5, 13, 27)))
        same = [found(n, leaves, kept, wanted) for n in (-1, 27)]
    np.testing.assert_array_equal(*same)


@jax.jit
def ranked(leaves):
    flat = jnp.concatenate([jnp.ravel(x) for x in leaves])
    return jnp.argsort(flat, descending=True, stable=True)


def expected(leaves, k):
    order = np.asarray(ranked(leaves))
    return np.isin(np.arange(order.size), order[:k])


def first_kept(units, kept, counts):
    """Of each pool, what was kept and then the best, by a sort in NumPy."""
    return np.concatenate(
        [
            np.isin(np.arange(x.size), np.lexsort((-x, ~old))[:k])
            for x, old, k in zip(
                map(np.ravel, map(np.asarray, units)),
                map(np.ravel, map(np.asarray, kept)),
                counts,
                strict=True,
            )
        ]
    )


def joined(masks):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(masks)])


def hard_tree(rng, dtype):
    pool = np.array([*HARD, *rng.normal(size=5)])
    return [jnp.asarray(rng.choice(pool, size=s), dtype) for s in SHAPES]


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.sampled_from(DTYPES),
    hnp.arrays(
        np.float32,
        32,
        elements=st.sampled_from(HARD) | st.floats(width=32),
    ),
    st.integers(0, 32),
)
def test_follows_argsort(dtype, values, k):
    parts = np.split(values, [12, 13, 13, 20])
    leaves = [
        jnp.asarray(x).astype(dtype).reshape(s)
        for x, s in zip(parts, SHAPES, strict=True)
    ]
    np.testing.assert_array_equal(
        joined(top_k_mask(leaves, k)), expected(leaves, k)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_k(dtype):
    leaves = hard_tree(np.random.default_rng(0), dtype)
    for k in range(33):
        np.testing.assert_array_equal(
            joined(top_k_mask(leaves, k)), expected(leaves, k)
        )


def test_float64():
    with jax.enable_x64(True):
        values = 1 + np.arange(40).reshape(5, 8) % 13 * 2.0**-50
        leaves = [jnp.asarray(values), jnp.asarray([np.nan, 1, -np.inf])]
        assert leaves[0].dtype == jnp.float64
        for k in (0, 1, 5, 20, 43):
            found = jax.jit(selection.top_k_mask)(leaves, k)
            np.testing.assert_array_equal(joined(found), expected(leaves, k))


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "kind", ["normal", "heavy", "zeros", "sorted", "equal"]
)
def test_large_enough_to_be_sampled(kind):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1000, 300)).astype(np.float32)
    x = {
        "normal": x,
        "heavy": np.exp(20 * x),
        "zeros": np.where(x > 1, x, 0),
        "sorted": np.sort(x, axis=None).reshape(x.shape),
        "equal": np.ones_like(x),
    }[kind]
    for k in (1, 3000, 150_000, 299_999):
        np.testing.assert_array_equal(
            joined(top_k_mask(jnp.asarray(x), k)), expected([x], k)
        )


def test_many_leaves_compile():
    rng = np.random.default_rng(2)
    leaves = [
        jnp.asarray(rng.normal(size=(3, 4 + i % 7)), jnp.float32)
        for i in range(100)
    ]
    np.testing.assert_array_equal(
        joined(top_k_mask(leaves, 1000)), expected(leaves, 1000)
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.optimized
def test_many_leaves_take_little_memory_and_few_operations(dtype):
    """Operations are what compiling costs: 500 leaves take seconds."""

    def compiled(number):
        leaf = jax.ShapeDtypeStruct((64, 64), dtype)
        return top_k_mask.lower([leaf] * number, jnp.int32(1)).compile()

    few, many = compiled(20), compiled(40)
    operations = [str(x.as_text()).count(" = ") for x in (few, many)]
    assert (operations[1] - operations[0]) / 20 < 80
    memory = many.memory_analysis()
    assert memory is not None
    size = 40 * 64 * 64 * jnp.dtype(dtype).itemsize
    assert memory.temp_size_in_bytes < size / 10 + 4096 * 4  # and a sample


@pytest.mark.optimized
def test_few_operands_in_a_concatenation():
    """Compiling one takes time that goes with the square of its operands."""
    numbers = [jnp.ones(3, np.int32)] * 100
    joined_up = jax.jit(lambda xs: concatenate_many([x * 2 for x in xs]) + 1)
    np.testing.assert_array_equal(joined_up(numbers), np.full(300, 3))
    text = str(joined_up.lower(numbers).compile().as_text())
    joins = re.findall(r" concatenate\((.*?)\), dim", text)
    assert joins
    assert max(x.count("%") for x in joins) <= 32


def test_one_compilation_outside_jit(compilations):
    params = [jnp.arange(12.0).reshape(3, 4)] * 8
    masks = jprune.find_masks(params, 0.3)
    jprune.find_masks(params, 0.5, masks=masks)
    compilations.clear()
    jprune.find_masks(params, 0.6, masks=masks)
    assert not compilations
    jax.jit(lambda x: x + 1)(1.0)
    assert compilations  # compiling is heard


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_k_of_any_integer_dtype(dtype):
    mask = top_k_mask(jnp.arange(5.0), jnp.array(3, dtype))
    assert mask.tolist() == [False, False, True, True, True]


def test_holes_are_passed_over():
    tree = {"a": jnp.array([1.0, 2.0]), "b": None, "c": optax.MaskedNode()}
    found = selection.top_k_mask(tree, 1)
    np.testing.assert_array_equal(found["a"], [False, True])
    assert found["b"] is None
    assert found["c"] == optax.MaskedNode()


def test_traced_k_is_clipped_and_mapped():
    x = jnp.asarray(hard_tree(np.random.default_rng(3), jnp.float32)[0])
    ks = jnp.arange(-1, 14)
    found = jax.jit(jax.vmap(lambda k: selection.top_k_mask(x, k)))(ks)
    for k, mask in zip(np.clip(ks, 0, 12), found, strict=True):
        np.testing.assert_array_equal(joined(mask), expected([x], int(k)))


@pytest.mark.parametrize("k", [-1, 13, 1.5, [1, 2]])
def test_wrong_k_is_refused(k):
    with pytest.raises(ValueError, match=r"k must be an? .*, got"):
        selection.top_k_mask(jnp.ones((3, 4)), k)


def test_kept_units_come_first():
    x = jnp.array([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    kept = jnp.array([[False, False, False, True, True, True]])
    for k in range(7):
        order = np.array([3, 4, 5, 0, 1, 2])[:k]
        (found,) = select.select([x], _counts.count_of(k), [kept])
        np.testing.assert_array_equal(found[0], np.isin(np.arange(6), order))


@pytest.mark.parametrize("times", [1, 20])
@pytest.mark.parametrize("with_kept", [False, True])
@pytest.mark.sweep(4)
def test_each_pool_on_its_own(with_kept, times):
    rng = np.random.default_rng(4)
    shapes = [(3, 10), (1, 4, 5), (1,), (2, 1), (4, 2, 3)]
    units = [
        jnp.asarray(rng.integers(0, 4, size=s), jnp.float32)
        for s in shapes * times
    ]
    kept = [jnp.asarray(rng.random(x.shape) < 0.4) for x in units]
    counts = [rng.integers(0, x[0].size + 1, x.shape[0]) for x in units]
    found = select.select(
        units,
        jnp.asarray(np.concatenate(counts), jnp.int32),
        kept if with_kept else None,
    )
    for x, old, count, mask in zip(units, kept, counts, found, strict=True):
        for p, k in enumerate(count):
            first = ~np.ravel(old[p])
            keys = (-np.ravel(x[p]), first) if with_kept else (-np.ravel(x[p]),)
            order = np.lexsort(keys)[:k]
            wanted = np.isin(np.arange(x[p].size), order)
            np.testing.assert_array_equal(np.ravel(mask[p]), wanted)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("divided", [False, True])
def test_rows_are_counted_first_where_nothing_is_divided(divided):
    """It is the array that counts, and not the devices of the process."""
    assert jax.device_count() > 1
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.integers(0, 50, size=(20, 700)), jnp.float32)
    if divided:
        mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
        x = jax.device_put(x, NamedSharding(mesh, P("a")))
    rows = jax.make_jaxpr(_kernels.count_true)(x[None] > 25)
    assert ("reduce_sum" in str(rows)) == (not divided)
    for k in (0, 7000, 13_990):
        found = jax.jit(selection.top_k_mask)(x, k)
        np.testing.assert_array_equal(joined(found), expected([x], k))


def test_scores_are_not_copied_outside_of_jit():
    """One program does it all: nothing is done to the scores before."""
    program = jax.make_jaxpr(selection.top_k_mask)(jnp.ones((8, 4)), 5)
    (scores, _), eqns = program.jaxpr.invars, program.jaxpr.eqns
    readers = [eqn.primitive.name for eqn in eqns if scores in eqn.invars]
    assert len(readers) == 1
    assert readers[0] in _jax.INLINED


def test_ends_with_counts_that_contradict():
    x = jnp.arange(10.0)[None]  # as under `vmap`, where all branches are run
    kept = [jnp.ones_like(x, dtype=bool)]
    five, none = jnp.array([5]), jnp.array([0])
    (found,) = select.select([x], five, kept, none)
    assert found.shape == x.shape


@pytest.mark.sweep(2)
@pytest.mark.parametrize("with_kept", [False, True])
def test_leaves_large_enough_to_be_sampled_each(with_kept):
    rng = np.random.default_rng(7)
    units = [
        jnp.asarray(np.abs(rng.normal(size=s)), jnp.float32)
        for s in [(1, 600, 500), (1, 30, 10), (2, 300, 300)]
    ]
    kept = [jnp.asarray(rng.random(x.shape) < 0.4) for x in units]
    counts = np.array([30_000, 7, 45_000, 1])
    found = jax.jit(select.select)(
        units, jnp.asarray(counts, jnp.int32), kept if with_kept else None
    )
    rows = [
        (np.ravel(x[p]), np.ravel(old[p]), np.ravel(mask[p]))
        for x, old, mask in zip(units, kept, found, strict=True)
        for p in range(len(x))
    ]
    for k, (x, old, mask) in zip(counts, rows, strict=True):
        order = np.lexsort((-x, ~old) if with_kept else (-x,))[:k]
        np.testing.assert_array_equal(mask, np.isin(np.arange(x.size), order))


@pytest.mark.parametrize(
    "shape", [(100_000, 1000), (100_000_000,), (250_000, 4)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.sweep(3)
@pytest.mark.optimized
def test_little_memory(shape, dtype):
    x = jax.ShapeDtypeStruct(shape, dtype)
    compiled = top_k_mask.lower(x, jnp.int32(1)).compile()
    size = x.size * x.dtype.itemsize
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < size / 10 + 4096 * 4  # and a sample


def mesh_tree(axis_type):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    rng = np.random.default_rng(5)
    values = [
        rng.normal(size=(512, 1024)),
        rng.integers(0, 3, size=(64, 32)),
        rng.integers(0, 3, size=(40,)),
    ]
    leaves = [jnp.asarray(x, jnp.float32) for x in values]
    specs = [P("a", "b"), P("b", None), P("a")]
    placed = [
        jax.device_put(x, NamedSharding(mesh, s))
        for x, s in zip(leaves, specs, strict=True)
    ]
    return mesh, leaves, placed


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.optimized
def test_sharded_as_on_one_device(axis_type):
    mesh, leaves, placed = mesh_tree(axis_type)
    with jax.set_mesh(mesh):
        compiled = top_k_mask.lower(placed, jnp.int32(9)).compile()
        for k in (1000, 200_000, 262_500):
            found = compiled(placed, jnp.int32(k))
            np.testing.assert_array_equal(joined(found), expected(leaves, k))
            for x, mask in zip(placed, found, strict=True):
                assert mask.sharding.is_equivalent_to(x.sharding, x.ndim)
    assert_only_counts_travel(str(compiled.as_text()))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.sweep(2)
def test_kept_on_other_axes_than_scores(axis_type):
    mesh, leaves, placed = mesh_tree(axis_type)
    kept = [jnp.asarray(x > 0.5) for x in leaves]
    k = _counts.count_of(300_000)
    together = [
        np.concatenate([np.ravel(x) for x in y]) for y in (leaves, kept)
    ]
    wanted = first_kept([together[0]], [together[1]], [300_000])
    with jax.set_mesh(mesh):
        everywhere = [jax.device_put(x, NamedSharding(mesh, P())) for x in kept]
        found = jax.jit(
            lambda x, y: select.select(
                [leaf[None] for leaf in x], k, [leaf[None] for leaf in y]
            )
        )(placed, everywhere)
    np.testing.assert_array_equal(joined(found), wanted)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_each_device_chooses_for_itself_in_shard_map(axis_type):
    """Loops start from constants, and go on with what varies."""
    mesh = jax.make_mesh((2,), ("a",), axis_types=(axis_type,))
    rng = np.random.default_rng(10)
    large = rng.normal(size=(2, 800, 400)).round(2).astype(np.float32)
    small = rng.integers(0, 3, size=(2, 5, 6)).astype(np.float32)
    ks, by = np.array([300_000, 44]), NamedSharding(mesh, P("a"))

    def choose(tree, k):
        masks = top_k_mask([x[0] for x in tree], k[0])
        return [mask[None] for mask in masks]

    with jax.set_mesh(mesh):
        mapped = jax.shard_map(choose, in_specs=P("a"), out_specs=P("a"))
        found = jax.jit(mapped)(*jax.device_put(([large, small], ks), by))
    for i, k in enumerate(ks):
        np.testing.assert_array_equal(
            joined([np.asarray(x)[i] for x in found]),
            expected([large[i], small[i]], int(k)),
        )


@pytest.mark.slow
def test_pools_and_kept_units_in_shard_map():
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(11)
    units = jnp.asarray(rng.integers(0, 5, size=(2, 3, 40)), jnp.float32)
    kept = jnp.asarray(rng.random(units.shape) < 0.4)
    counts = jnp.array([7, 20, 31])

    def choose(units, kept):
        (mask,) = select.select([units[0]], counts, [kept[0]])
        return mask[None]

    with jax.set_mesh(mesh):
        mapped = jax.shard_map(choose, in_specs=P("a"), out_specs=P("a"))
        found = jax.jit(mapped)(units, kept)
    for i in range(2):
        wanted = first_kept(units[i], kept[i], counts)
        np.testing.assert_array_equal(np.ravel(found[i]), wanted)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "strict",
    [
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
)
def test_nothing_is_promoted_silently(strict):
    large = jnp.zeros((800, 400))
    small = [jnp.zeros((4, 5, 6), jnp.bfloat16)] * 40
    kept = [x > 1 for x in small]
    with strict():
        jax.eval_shape(selection.top_k_mask, [large, *small], 9)
        for wanted in _counts.count_of(9), jnp.zeros(160, jnp.int32):
            jax.eval_shape(select.select, small, wanted)
            jax.eval_shape(select.select, small, wanted, kept)
        jax.eval_shape(select_few, small, jnp.zeros(40, jnp.int32), kept)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.sweep(2)
def test_mapped_over_a_divided_axis(axis_type):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(axis_type,))
    x = jax.random.normal(jax.random.key(0), (8, 16, 32))
    placed = jax.device_put(x, NamedSharding(mesh, P("a")))
    with jax.set_mesh(mesh):
        found = jax.jit(jax.vmap(lambda p: top_k_mask(p, 9)))(placed)
    for mask, scores in zip(found, x, strict=True):
        np.testing.assert_array_equal(np.ravel(mask), expected([scores], 9))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.slow
def test_many_leaves_on_a_mesh(axis_type):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(axis_type,))
    rng = np.random.default_rng(9)
    leaves = [
        jnp.asarray(rng.integers(0, 9, size=(16, 24)), jnp.float32)
        for _ in range(48)
    ]
    placed = [
        jax.device_put(
            x, NamedSharding(mesh, P("a") if i % 2 else P(None, "a"))
        )
        for i, x in enumerate(leaves)
    ]
    with jax.set_mesh(mesh):
        compiled = top_k_mask.lower(placed, jnp.int32(9)).compile()
        found = compiled(placed, jnp.int32(5000))
    np.testing.assert_array_equal(joined(found), expected(leaves, 5000))
    assert_only_counts_travel(str(compiled.as_text()), most=48 * 7)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.slow
def test_layers_of_one_kind_are_read_together_on_a_mesh(axis_type, alike):
    """Divided as their names say, no score travels; else all is right too."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(axis_type,))
    rng = np.random.default_rng(10)
    values = rng.integers(0, 9, size=(48, 2, 16, 24)).astype(np.float32)
    into, out = P(None, "a"), P("a")

    def layer(i):
        specs = (into, out) if alike or i % 2 else (out, into)
        return {
            name: jax.device_put(x, NamedSharding(mesh, spec))
            for name, x, spec in zip(
                ("up", "wo"), values[i], specs, strict=True
            )
        }

    placed = {f"layer_{i:02}": layer(i) for i in range(48)}
    with jax.set_mesh(mesh):
        compiled = top_k_mask.lower(placed, jnp.int32(9)).compile()
        found = compiled(placed, jnp.int32(9000))
    found = jax.tree.leaves(found)
    np.testing.assert_array_equal(
        joined(found), expected([*np.reshape(values, (96, 16, 24))], 9000)
    )
    for x, mask in zip(jax.tree.leaves(placed), found, strict=True):
        assert mask.sharding.is_equivalent_to(x.sharding, x.ndim)
    if alike:
        text = str(compiled.as_text())
        assert_only_counts_travel(text, most=48 * 7)
        # Two kinds and two questions, each of seven keys: one by one 96 kinds.
        assert len(re.findall(r" all-(?:gather|reduce)\(", text)) <= 4 * 8


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((1024, 1000), P(None, "a")),
        ((2**20,), P("a")),
    ],
)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.sweep(6)
@pytest.mark.optimized
def test_many_scores_stay_where_they_are(axis_type, shape, spec):
    """However the axes are divided."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(axis_type,))
    x = jax.random.normal(jax.random.key(0), shape)
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        k = jnp.int32(1000)
        compiled = top_k_mask.lower(placed, k).compile()
        found = compiled(placed, k)
    np.testing.assert_array_equal(joined([found]), expected([x], 1000))
    assert_only_counts_travel(str(compiled.as_text()))
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < x.nbytes / 8 / 10


def assert_only_counts_travel(text, most=64):
    pattern = (
        r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute)"
        r"(?:-start)?\("
    )
    moved = re.findall(pattern, text)
    assert moved
    for result in moved:
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", result):
            assert dtype in ("s32", "u32", "pred")
            assert np.prod([int(d) for d in dims.split(",") if d]) <= most


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.sweep(2)
@pytest.mark.optimized
def test_sharded_pools_and_kept_units(axis_type):
    mesh, leaves, placed = mesh_tree(axis_type)
    rng = np.random.default_rng(8)
    old = [rng.random(x.shape) < 0.5 for x in leaves]
    counts = [400_000, 900, 9]

    @jax.jit
    def call(units, kept):
        units = [x[None] for x in units]
        kept = [x[None] for x in kept]
        masks = select.select(units, jnp.array(counts), kept)
        return [x[0] for x in masks]

    with jax.set_mesh(mesh):
        kept = [
            jax.device_put(m, x.sharding)
            for m, x in zip(old, placed, strict=True)
        ]
        compiled = call.lower(placed, kept).compile()
        found = compiled(placed, kept)
    np.testing.assert_array_equal(
        joined(found), first_kept(leaves, old, counts)
    )
    for x, mask in zip(placed, found, strict=True):
        assert mask.sharding.is_equivalent_to(x.sharding, x.ndim)
    assert_only_counts_travel(str(compiled.as_text()))


SIZES = np.array([0, 1, 3, 1000, 2**31 - 1, 2**31 + 7, 2**40])


def whole(count):
    return np.asarray(count.high, np.int64) * 2**16 + np.asarray(count.low)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.sweep(4)
def test_fraction_of_is_exact(jit, x64):
    values = [0.0, 1.0, 0.5, 0.1, 1 / 3, 0.9, 1e-7, 1 - 2**-24, 2**-40]
    call = jax.jit(lambda f: _counts.fraction_of(f, SIZES))
    with jax.enable_x64(x64):
        for value in jnp.asarray(values):
            found = call(value) if jit else _counts.fraction_of(value, SIZES)
            exact = Fraction(float(value))
            wanted = [round(exact * int(n)) for n in SIZES]
            np.testing.assert_array_equal(whole(found), wanted)


def test_python_fractions_round_as_python():
    for value in (0.1, 0.5, 0.3):
        wanted = [round(value * int(n)) for n in SIZES]
        np.testing.assert_array_equal(_counts.fraction_of(value, SIZES), wanted)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_two_limbs(a, b):
    x, y = _counts.count_of(a), _counts.count_of(b)
    assert whole(_counts.add(x, y)) == a + b
    assert whole(_counts.subtract(x, y)) == a - b
    assert bool(_counts.less(x, y)) == (a < b)
    assert bool(_counts.equal(x, y)) == (a == b)


@pytest.mark.sweep(2)
def test_sums_and_shares_beyond_int32():
    limits = np.array([2**31 + 5, 7, 2**35, 0, 2**33])
    counts = _counts.count_of(limits)
    assert whole(_counts.total(counts)) == limits.sum()
    np.testing.assert_array_equal(
        whole(_counts.cumulative(counts)), np.cumsum(limits)
    )
    shares = _counts.share(_counts.count_of(2**35), counts)
    rest = 2**35 - 2**31 - 12
    np.testing.assert_array_equal(whole(shares), [2**31 + 5, 7, rest, 0, 0])
