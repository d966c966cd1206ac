"""Which weights stay: golden values of other libraries, and what always holds.

"torch" is ``torch.nn.utils.prune`` 2.13; the numbers were made with it.
"""

import dataclasses
import functools
from fractions import Fraction
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune._core import counts as _counts
from jprune._core.seeds import key_maker
from jprune.allocations import global_ranking, uniform

GLOBAL = global_ranking()
VECTORS: Any = lambda params: jax.tree.map(lambda p: True, params)
PERMUTED = np.array([(17 * i % 31) * (-1.0) ** i for i in range(1, 31)])


def zeros_of(mask: Any) -> list[int]:
    return np.flatnonzero(~np.asarray(mask)).tolist()


def test_torch_l1_unstructured() -> None:
    w = jnp.array([[1.0, 2, 3, 4], [-4, -3, -2, -1]])
    masks = jprune.find_masks(w, 2 / 8)
    pruned = jprune.apply_masks(w, masks)
    np.testing.assert_array_equal(pruned, [[0, 2, 3, 4], [-4, -3, -2, 0]])
    masks = jprune.find_masks(pruned, 4 / 8, masks=masks)
    pruned = jprune.apply_masks(w, masks)
    np.testing.assert_array_equal(pruned, [[0, 0, 3, 4], [-4, -3, 0, 0]])


def test_torch_iterative() -> None:
    w = jnp.asarray(PERMUTED.reshape(5, 6), jnp.float32)
    masks = jprune.find_masks(w, 0.3)  # torch: .3, then .5 of the rest
    first = [1, 3, 5, 10, 12, 14, 21, 23, 25]
    assert zeros_of(masks) == first
    rest = [0, 7, 9, 11, 16, 18, 20, 22, 27, 29]
    masks = jprune.find_masks(w, 19 / 30, masks=masks)
    assert zeros_of(masks) == sorted(first + rest)


def test_torch_global() -> None:
    params = [jnp.array([0.0, 0.1, -2.0]), jnp.array([[0.5, -0.2, 3.0]])]
    masks = jprune.find_masks(params, 4 / 6, allocation=GLOBAL, where=VECTORS)
    pruned = jprune.apply_masks(params, masks)
    np.testing.assert_array_equal(pruned[0], [0, 0, -2])
    np.testing.assert_array_equal(pruned[1], [[0, 0, 3]])


def test_torch_global_iterative() -> None:
    w = jnp.asarray(PERMUTED.reshape(5, 6), jnp.float32)
    params = [w[:2], 2 * w[2:]]
    masks = jprune.find_masks(params, 0.4, allocation=GLOBAL)
    found = [[0, 1, 3, 5, 7, 9, 10], [0, 2, 9, 11, 13]]
    assert list(map(zeros_of, masks)) == found
    masks = jprune.find_masks(params, 21 / 30, allocation=GLOBAL, masks=masks)
    found = [list(range(12)), [0, 2, 4, 6, 9, 11, 13, 15, 17]]
    assert list(map(zeros_of, masks)) == found


def test_equal_magnitudes_are_counted_exactly() -> None:
    masks = jprune.find_masks(jnp.ones((3, 4)), 0.5)  # as torch does it
    assert zeros_of(masks) == [6, 7, 8, 9, 10, 11]
    masks = jprune.find_masks(-jnp.ones((2, 4)), 0.5)  # JaxPruner: the first 4
    assert zeros_of(masks) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("sparsity", "zeros"), [(0.1, 8), (0.2, 16), (0.5, 40), (0.8, 65)]
)
@pytest.mark.parametrize("allocation", [uniform(), GLOBAL])
def test_zeros_of_81(sparsity: float, zeros: int, allocation: Any) -> None:
    """Half to even, as torch; JaxPruner and TF-MOT have 41 at .5.

    The official RigL rounds down, and has 64 at .8.
    """
    w = jnp.arange(81.0).reshape(9, 9)
    masks = jprune.find_masks(w, sparsity, allocation=allocation)
    assert zeros_of(masks) == list(range(zeros))


def test_rounding_per_leaf_and_in_total() -> None:
    params = {name: jnp.arange(3.0)[None] for name in "abc"}
    each = jprune.find_masks(params, 0.5, allocation=uniform())
    # round(1.5) = 2 in each
    assert [zeros_of(m) for m in each.values()] == [[0, 1]] * 3
    total = jprune.find_masks(params, 0.5, allocation=GLOBAL)  # round(4.5) = 4
    # The last of the equal ones go: 0 of all leaves, then 1 of the last.
    assert [zeros_of(m) for m in total.values()] == [[0], [0], [0, 1]]


def lost_of(fraction: Any, size: int) -> int:
    count = _counts.fraction_of(fraction, np.array(size, np.int64))
    if isinstance(count, _counts.Count):
        return int(count.high) * 2**16 + int(count.low)
    return int(count)


def test_a_traced_sparsity_is_its_float32() -> None:
    size = 100_000_000
    assert lost_of(0.9, size) == 90_000_000
    assert lost_of(jnp.float32(0.9), size) == 89_999_998
    traced = jax.jit(lambda s: _counts.fraction_of(s, np.array(size)))(0.9)
    assert int(traced.high) * 2**16 + int(traced.low) == 89_999_998
    with jax.enable_x64(True):
        assert lost_of(jnp.float64(0.9), size) == 90_000_000


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.floats(0, 1, width=32, allow_subnormal=False))
def test_traced_counts_are_exact(fraction: float) -> None:
    """The float32 times n, rounded half to even, in exact arithmetic."""
    for size in SIZES:
        count = COUNT[size](np.float32(fraction))
        found = int(count.high) * 2**16 + int(count.low)
        assert found == round(Fraction(fraction) * size)


SIZES = (1, 2, 81, 2**16, 100_000_000, 2**31 + 1, 2**40)
COUNT = {
    n: jax.jit(lambda s, n=n: _counts.fraction_of(s, np.array(n, np.int64)))
    for n in SIZES
}


def test_traced_halves_round_to_even() -> None:
    sizes = np.array([64, 192, 320], np.int64)
    fraction_of = jax.jit(lambda s: _counts.fraction_of(s, sizes))
    for numerator in range(129):
        found = fraction_of(numerator / 128)
        wanted = [round(Fraction(numerator, 128) * int(n)) for n in sizes]
        assert (np.asarray(found.high) * 2**16 + found.low).tolist() == wanted


@pytest.mark.parametrize("sparsity", [0.0, 1.0, 0.3])
def test_concrete_and_traced_sparsity_agree(sparsity: float) -> None:
    w = jnp.asarray(PERMUTED.reshape(5, 6))
    for allocation in (uniform(), GLOBAL):

        def find(s: Any, allocation: Any = allocation) -> Any:
            return jprune.find_masks(w, s, allocation=allocation)

        concrete = find(sparsity)
        assert len(zeros_of(concrete)) == round(sparsity * 30)
        np.testing.assert_array_equal(jax.jit(find)(sparsity), concrete)
        np.testing.assert_array_equal(find(np.float64(sparsity)), concrete)


def choose(leaves: list[Any], kept: list[Any], count: int) -> list[np.ndarray]:
    """The oracle: a stable sort by kept, then NaN first, then score."""
    scores = np.concatenate([np.abs(np.asarray(x)).ravel() for x in leaves])
    stay = np.concatenate([np.asarray(k).ravel() for k in kept])

    def rank(i: int) -> Any:
        score = scores[i]
        return not stay[i], not np.isnan(score), -score

    chosen = sorted(range(scores.size), key=rank)[:count]
    flat = np.isin(np.arange(scores.size), chosen)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = np.split(flat, ends)
    return [f.reshape(x.shape) for f, x in zip(parts, leaves, strict=True)]


# Few values, so that equal ones are common; NaN, infinities and both zeros.
ENTRIES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, np.nan, np.inf, -np.inf]),
    st.floats(width=32, allow_subnormal=False),
)
SHAPES = ((3, 4), (1, 5), (2, 2, 2))
SIZE = 25


@st.composite
def trees(draw: Any) -> list[np.ndarray]:
    values = draw(st.lists(ENTRIES, min_size=SIZE, max_size=SIZE))
    parts = np.split(np.array(values, np.float32), [12, 17])
    return [x.reshape(s) for x, s in zip(parts, SHAPES, strict=True)]


@st.composite
def masks_of_trees(draw: Any) -> list[np.ndarray]:
    flat = draw(st.lists(st.booleans(), min_size=SIZE, max_size=SIZE))
    parts = np.split(np.array(flat), [12, 17])
    return [x.reshape(s) for x, s in zip(parts, SHAPES, strict=True)]


SPARSITIES = st.integers(0, 100).map(lambda n: n / 100)
JITTED = {
    joint: jax.jit(
        lambda p, s, m, a=allocation: jprune.find_masks(
            p, s, allocation=a, masks=m
        )
    )
    for joint, allocation in ((False, uniform()), (True, GLOBAL))
}


def find(params: Any, zeros: float, masks: Any, *, joint: bool) -> Any:
    return JITTED[joint](params, np.float32(zeros), masks)


EVERYTHING = [np.ones(shape, bool) for shape in SHAPES]


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(params=trees(), sparsity=SPARSITIES, masks=masks_of_trees())
def test_global_order(params: Any, sparsity: float, masks: Any) -> None:
    lost = round(Fraction(float(np.float32(sparsity))) * SIZE)
    wanted = choose(params, masks, SIZE - lost)
    jax.tree.map(
        np.testing.assert_array_equal,
        find(params, sparsity, masks, joint=True),
        wanted,
    )


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(params=trees(), sparsity=SPARSITIES, masks=masks_of_trees())
def test_uniform_order(params: Any, sparsity: float, masks: Any) -> None:
    found = find(params, sparsity, masks, joint=False)
    for p, m, got in zip(params, masks, found, strict=True):
        lost = round(Fraction(float(np.float32(sparsity))) * p.size)
        np.testing.assert_array_equal(got, choose([p], [m], p.size - lost)[0])


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(params=trees(), sparsity=SPARSITIES, joint=st.booleans())
def test_idempotent(params: Any, sparsity: float, joint: bool) -> None:
    once = find(params, sparsity, EVERYTHING, joint=joint)
    pruned = jprune.apply_masks(params, once)
    again = find(pruned, sparsity, once, joint=joint)
    jax.tree.map(np.testing.assert_array_equal, again, once)


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(params=trees(), low=SPARSITIES, high=SPARSITIES)
def test_pruned_stays_pruned(params: Any, low: float, high: float) -> None:
    low, high = sorted((low, high))
    first = find(params, low, EVERYTHING, joint=True)
    other = [p[::-1] for p in params]  # as if training had changed everything
    second = find(other, high, first, joint=True)
    for a, b in zip(first, second, strict=True):
        assert not (np.asarray(b) & ~np.asarray(a)).any()


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(
    order=st.permutations(range(3)),
    values=st.permutations(range(SIZE)),
    sparsity=SPARSITIES,
)
def test_order_of_leaves_is_only_for_ties(
    order: list[int], values: list[int], sparsity: float
) -> None:
    flat = np.array(values, np.float32)
    params = dict(zip("abc", np.split(flat.reshape(5, 5), [1, 3]), strict=True))
    names = {
        name: f"{place}{name}" for name, place in zip("abc", order, strict=True)
    }
    moved = {names[name]: leaf for name, leaf in params.items()}
    found = jprune.find_masks(params, sparsity, allocation=GLOBAL)
    other = jprune.find_masks(moved, sparsity, allocation=GLOBAL)
    for name in "abc":
        np.testing.assert_array_equal(found[name], other[names[name]])


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(params=trees(), joint=st.booleans())
def test_the_same_masks_under_jit(params: Any, joint: bool) -> None:
    allocation = GLOBAL if joint else uniform()
    plain = jprune.find_masks(params, 0.5, allocation=allocation)
    jitted = find(params, 0.5, EVERYTHING, joint=joint)
    jax.tree.map(np.testing.assert_array_equal, plain, jitted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        w = jnp.asarray(PERMUTED.reshape(5, 6), dtype)
        masks = jprune.find_masks(w, 0.3)
        assert masks.dtype == bool
        assert zeros_of(masks) == [1, 3, 5, 10, 12, 14, 21, 23, 25]


def test_float64_scores_are_compared_as_such() -> None:
    with jax.enable_x64(True):
        w = 1 + jnp.arange(4.0)[None, ::-1] * 1e-12
        assert zeros_of(jprune.find_masks(w, 0.5)) == [2, 3]


def test_masks_that_hold_holes() -> None:
    """A leaf without a mask is kept whole so far, as in ``apply_masks``."""
    params = {"a": jnp.arange(4.0)[None], "b": 10 + jnp.arange(4.0)[None]}
    masks = {"a": jnp.array([[True, True, False, False]]), "b": None}
    found = jprune.find_masks(params, 0.5, masks=masks)
    assert zeros_of(found["a"]) == [2, 3]
    assert zeros_of(found["b"]) == [0, 1]
    masks["b"] = optax.MaskedNode()
    again = jprune.find_masks(params, 0.5, masks=masks)
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_masks_of_other_leaves_stay() -> None:
    """Layer by layer: what ``where`` does not select keeps its masks."""
    params = {
        "a": jnp.arange(4.0)[None],
        "b": jnp.arange(6.0)[None],
        "c": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)},
        "none": None,
    }
    first = jprune.find_masks(params, 0.5, where="^a$")
    assert first["b"] == optax.MaskedNode()
    both = jprune.find_masks(params, 0.5, where="^b$", masks=first)
    assert zeros_of(both["a"]) == [0, 1]
    assert zeros_of(both["b"]) == [0, 1, 2]
    assert both["c"] == {
        "kernel": optax.MaskedNode(),
        "bias": optax.MaskedNode(),
    }
    prefix = {"a": jnp.zeros((1, 1), bool), "b": None, "c": None, "none": None}
    last = jprune.find_masks(params, 0.5, where="kernel", masks=prefix)
    assert zeros_of(last["a"]) == [0, 1, 2, 3]  # broadcast
    assert zeros_of(last["c"]["kernel"]) == [1]
    pruned = jprune.apply_masks(params, last)
    assert [int(jnp.count_nonzero(p)) for p in jax.tree.leaves(pruned)] == (
        [0, 5, 2, 1]
    )


def test_random_criterion_counts_and_repeats() -> None:
    def draw(seed: int) -> Any:
        return jprune.find_masks(
            {"a": jnp.ones((9, 9)), "b": jnp.ones((9, 9))},
            0.5,
            criterion=jprune.criteria.random(),
            allocation=uniform(),
            key=jax.random.key(seed),
        )

    first, second, again = draw(0), draw(1), draw(0)
    assert [len(zeros_of(m)) for m in first.values()] == [40, 40]
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert zeros_of(first["a"]) != zeros_of(second["a"])
    assert zeros_of(first["a"]) != zeros_of(first["b"])


def test_leaves_without_pools() -> None:
    params = [jnp.ones((0, 3, 4)), jnp.ones((0, 2, 2))]
    structure = jprune.structures.unstructured(batch_axis=0)
    masks = jprune.find_masks(params, 0.5, structure=structure)
    assert [mask.shape for mask in masks] == [(0, 3, 4), (0, 2, 2)]


KEYS: dict[str, Any] = {
    "int": 3,
    "numpy scalar": np.int64(3),
    "numpy array": np.array(3),
    "unsigned": jnp.uint32(3),
    "eight bits": jnp.int8(3),
    "raw": jax.random.PRNGKey(3),
    "raw in numpy": np.array([0, 3], np.uint32),
    "typed": jax.random.key(3),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_kind(kind: str) -> None:
    """One place makes the key, from what is traced too."""

    def data(key: Any) -> Any:
        return jax.random.key_data(key_maker("find_masks", key)()).tolist()

    def traced(key: Any) -> Any:
        return jax.random.key_data(key_maker("find_masks", key)())

    assert data(KEYS[kind]) == [0, 3]
    assert jax.jit(lambda: traced(KEYS[kind]))().tolist() == [0, 3]
    assert jax.jit(traced)(KEYS[kind]).tolist() == [0, 3]


def test_a_seed_may_be_an_array() -> None:
    at_random = jprune.criteria.random()
    found, wanted = (
        jprune.find_masks(jnp.ones((4, 8)), 0.5, criterion=at_random, key=key)
        for key in (jnp.uint32(3), 3)
    )
    np.testing.assert_array_equal(found, wanted)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A module as Equinox has them: a tree that can be called."""

    kernel: Any
    bias: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a tree of bools is not called")


@pytest.mark.parametrize("true", [np.True_, np.array(True), jnp.array(True)])
def test_where_may_be_a_tree_that_can_be_called(true: Any) -> None:
    params = Layer(jnp.arange(6.0).reshape(2, 3), jnp.ones(4))
    masks = jprune.find_masks(params, 0.5, where=Layer(true, ~true))
    assert zeros_of(masks.kernel) == [0, 1, 2]
    assert masks.bias == optax.MaskedNode()
    masks = jprune.find_masks(params, 0.5, where=Layer(None, true))
    assert zeros_of(masks.bias) == [2, 3]
    tx = jprune.prune(0.5, where=jax.tree.map(lambda p: p.ndim == 2, params))
    assert tx.init(params).masks.bias == optax.MaskedNode()


def test_where_may_be_a_function_with_arguments_bound() -> None:
    def large(size: Any, params: Any) -> Any:
        return jax.tree.map(lambda p: p.size > size, params)

    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((3, 3))}
    for bind in (functools.partial, jax.tree_util.Partial):
        masks = jprune.find_masks(params, 0.5, where=bind(large, 4))
        assert masks["a"] == optax.MaskedNode()
        assert masks["b"].shape == (3, 3)


def test_where_goes_by_the_names_along_a_path() -> None:
    params = Layer(jnp.ones((2, 2)), jnp.ones(4))
    where = {"kernel": False, "bias": True}
    assert zeros_of(jprune.find_masks(params, 0.5, where=where).bias) == [2, 3]
    masks = jprune.find_masks(dict(vars(params)), 0.5, where=Layer(True, False))
    assert masks["bias"] == optax.MaskedNode()
    both = {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}}
    where_both: Any = {"a/b": True, "a": {"b": False}}
    assert jprune.find_masks(both, 0.5, where=where_both)["a"]["b"] == (
        optax.MaskedNode()
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_all_numbers_of_16_bits_are_ranked_as_in_float32(dtype: Any) -> None:
    """Subnormal, infinite and NaN ones too, and in half of the memory."""
    bits = np.random.default_rng(0).permutation(2**16).astype(np.uint16)
    params = {"kernel": jnp.asarray(bits.view(dtype).reshape(256, 256))}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    for sparsity in (0.003, 0.5, 0.9):
        np.testing.assert_array_equal(
            jprune.find_masks(params, sparsity)["kernel"],
            jprune.find_masks(wide, sparsity)["kernel"],
        )
    shape = jax.ShapeDtypeStruct((1024, 1024), dtype)
    compiled = jax.jit(lambda p: jprune.find_masks(p, 0.5)).lower(shape)
    memory = compiled.compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 1.1 * 2**21


def test_a_stack_of_more_than_int32_weights() -> None:
    """Layer by layer it can be counted; all together not yet."""
    stack = {"w": jax.ShapeDtypeStruct((80, 8192, 8192), jnp.bfloat16)}

    def masks(structure: Any, allocation: Any) -> Any:
        return jax.eval_shape(
            lambda p: jprune.find_masks(
                p, 0.5, structure=structure, allocation=allocation
            ),
            stack,
        )

    layers = jprune.structures.unstructured(batch_axis=0)
    assert masks(layers, uniform())["w"].shape == (80, 8192, 8192)
    for structure, allocation in (
        (jprune.structures.unstructured(), uniform()),
        (layers, GLOBAL),
    ):
        with pytest.raises(ValueError, match=r"5368709120 units.*batch_axis="):
            masks(structure, allocation)


def test_names_of_leaves_compile_nothing_new(compilations: list[str]) -> None:
    """They count on a mesh alone."""
    for number, name in enumerate(("up", "down")):
        compilations.clear()
        jprune.find_masks({name: jnp.ones((50, 50))}, 0.5)
        assert number == 0 or not compilations
