"""Masks applied, found in states, measured and printed."""

import collections
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune

PARAMS = {
    "a": jnp.array([[1.0, -4.0], [3.0, -2.0]]),
    "b": jnp.arange(6.0).reshape(2, 3) - 2.5,
    "bias": jnp.ones(2),
}
MASKS = {
    "a": jnp.array([[False, True], [True, False]]),
    "b": jnp.array([[True, False, False], [True, True, False]]),
    "bias": optax.MaskedNode(),
}


def assert_masks(got: Any, wanted: Any) -> None:
    assert str(jax.tree.structure(got)) == str(jax.tree.structure(wanted))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == bool
        np.testing.assert_array_equal(a, b)


def test_apply_masks_clears_nan_and_infinity() -> None:
    w = jnp.array([jnp.nan, jnp.inf, -jnp.inf, jnp.nan, -0.0, 2.0])
    keep = jnp.array([False, False, False, True, True, True])
    got = np.asarray(jprune.apply_masks(w, keep))
    np.testing.assert_array_equal(got, [0, 0, 0, np.nan, -0.0, 2])
    assert not np.signbit(got[:3]).any()
    assert np.signbit(got[4]), "what is kept keeps its bits"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_apply_masks_keeps_dtypes(dtype: str) -> None:
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion("strict"),
    ):
        w = jnp.asarray([[1.0, 2.0]], dtype)
        got = jax.jit(jprune.apply_masks)(w, jnp.array([[True, False]]))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, jnp.asarray([[1.0, 0.0]], dtype))


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()])
def test_apply_masks_passes_over_holes(hole: Any) -> None:
    masks = {"a": MASKS["a"], "b": hole, "bias": hole}
    got = jprune.apply_masks(PARAMS, masks)
    np.testing.assert_array_equal(got["a"], [[0, -4], [3, 0]])
    assert got["b"] is PARAMS["b"]
    inside = jprune.apply_masks({"a": hole, "b": PARAMS["b"]}, MASKS)
    assert inside["a"] == hole
    assert int((inside["b"] != 0).sum()) == 3


def test_a_hole_stands_for_a_branch() -> None:
    params = {"one": PARAMS, "two": {"a": PARAMS["a"]}}
    got = jprune.apply_masks(params, {"one": None, "two": {"a": MASKS["a"]}})
    jax.tree.map(np.testing.assert_array_equal, got["one"], PARAMS)
    np.testing.assert_array_equal(got["two"]["a"], [[0, -4], [3, 0]])


VARIABLES = {
    "params": {"one": {"w": PARAMS["a"]}, "two": {"w": PARAMS["b"]}},
    "stats": {"one": {"mean": PARAMS["bias"]}},
}
OF_PARAMS = {"one": {"w": MASKS["a"]}, "two": {"w": MASKS["b"]}}


@pytest.mark.parametrize(
    "masks",
    [
        OF_PARAMS,
        {"params": OF_PARAMS},
        {"params": OF_PARAMS, "stats": None},
        {"two": OF_PARAMS["two"], "one": {"w": MASKS["a"], "bias": None}},
    ],
)
def test_masks_of_a_part(masks: Any) -> None:
    pruned = {
        "params": {
            "one": {"w": jnp.where(MASKS["a"], PARAMS["a"], 0)},
            "two": {"w": jnp.where(MASKS["b"], PARAMS["b"], 0)},
        },
        "stats": VARIABLES["stats"],
    }

    def check(got: Any, wanted: Any) -> None:
        jax.tree.map(np.testing.assert_array_equal, got, wanted)

    check(jprune.apply_masks(VARIABLES, masks), pruned)
    check(jprune.straight_through(VARIABLES, masks), pruned)
    assert jprune.summarize(VARIABLES, masks).kept == 2 + 3 + 2
    state = jprune.keep_masks(masks).init(VARIABLES)
    updates = jax.tree.map(jnp.zeros_like, VARIABLES)
    updates, _ = jprune.keep_masks(masks).update(updates, state, VARIABLES)
    check(optax.apply_updates(VARIABLES, updates), pruned)
    assert state.masks["stats"]["one"]["mean"] == optax.MaskedNode()
    more = jprune.find_masks(VARIABLES, 0.5, where="two", masks=masks)
    check(more["params"]["one"], OF_PARAMS["one"])


def test_masks_of_one_leaf_of_a_branch() -> None:
    masks = {"two": {"w": MASKS["b"]}}
    got = jprune.apply_masks(VARIABLES, masks)
    assert got["params"]["one"]["w"] is PARAMS["a"]
    assert int((got["params"]["two"]["w"] != 0).sum()) == 3


def test_the_whole_tree_goes_before_its_branches() -> None:
    params = {"w": PARAMS["a"], "copy": {"w": PARAMS["a"]}}
    got = jprune.apply_masks(params, {"w": MASKS["a"]})
    assert got["copy"]["w"] is PARAMS["a"]
    assert int((got["w"] == 0).sum()) == 2


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w": MASKS["a"]}, "several branches.*'params/one' and 'params/two'"),
        ({"one": {"v": MASKS["a"]}}, "'one/v' fits no parameter"),
        ({**OF_PARAMS, "three": MASKS["a"]}, "'three' fits no parameter"),
        ({"one": {"w": MASKS["a"], "mean": MASKS["bias"]}}, None),
        (
            {"one": {"w": MASKS["a"], "mean": np.ones(2, bool)}},
            "several branches.*'params' and 'stats'",
        ),
        ({"one": MASKS["a"]}, "'one' fits no parameter"),
    ],
)
def test_no_mask_is_left_over(masks: Any, message: str | None) -> None:
    if message is None:  # a hole needs no place
        jprune.apply_masks(VARIABLES, masks)
        return
    with pytest.raises(ValueError, match=f"`apply_masks.*{message}"):
        jprune.apply_masks(VARIABLES, masks)


COLLIDING: dict[str, Any] = {"a/b": PARAMS["a"], "a": {"b": 9.0 + PARAMS["a"]}}


@pytest.mark.slow
def test_names_that_collide_when_joined() -> None:
    """``a/b`` is the name of both leaves; each has its own mask."""
    first = {"a/b": MASKS["a"], "a": {"b": ~MASKS["a"]}}
    masks = jprune.find_masks(COLLIDING, 0.5)
    np.testing.assert_array_equal(masks["a/b"], MASKS["a"])
    got = jprune.apply_masks(COLLIDING, first)
    np.testing.assert_array_equal(got["a/b"] != 0, MASKS["a"])
    np.testing.assert_array_equal(got["a"]["b"] != 0, ~MASKS["a"])
    one = jprune.apply_masks(COLLIDING, {"a/b": MASKS["a"]})
    assert one["a"]["b"] is COLLIDING["a"]["b"]
    rows = jprune.summarize(COLLIDING, {"a/b": MASKS["a"]}).leaves
    assert [(row.path, row.masked) for row in rows] == [
        ("['a']['b']", False),
        ("['a/b']", True),
    ]
    for tx in (
        jprune.keep_masks(first),
        jprune.prune(0.5),
        jprune.rigl(optax.adam(0.1), 0.5, fraction=0.5, every=1),
    ):
        chain = optax.chain(optax.sgd(0.1), tx)
        _, state = tx.update(COLLIDING, tx.init(COLLIDING), COLLIDING)
        assert [int(m.sum()) for m in jax.tree.leaves(state.masks)] == [2, 2]
        report = jprune.check_chain(chain, COLLIDING)
        assert report.zeros_persist
        assert report.pruned == 4
    wrong = optax.chain(jprune.keep_masks(first), optax.adam(0.1))
    report = jprune.check_chain(wrong, COLLIDING)
    assert report.revived == {"['a']['b']": 2, "['a/b']": 2}


def test_names_that_collide_in_compaction() -> None:
    def fn(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params["a/b"]) @ params["a"]["b"]

    params = {"a/b": jnp.ones((3, 4)), "a": {"b": jnp.ones((4, 5))}}
    masks = {"a/b": jnp.arange(4) > 0}
    x = jnp.ones((1, 3))
    small = jprune.compact(fn, params, x, masks=masks)
    shapes = {"a/b": (3, 3), "a": {"b": (3, 5)}}
    assert jax.tree.map(jnp.shape, small.params) == shapes
    assert small.certify(x).error == 0
    plan = jprune.compaction.Plan.from_json(small.plan.to_json())
    state = optax.adam(0.1).init(params)
    for taken in (
        plan.take(state)[0].mu,
        plan.take(params),
        plan.apply(params),
    ):
        assert jax.tree.map(jnp.shape, taken) == shapes
    structure = jprune.units(jprune.trace_units(fn, params, x))
    found = jprune.find_masks(params, 0.5, structure=structure)
    assert [int(m.sum()) for m in jax.tree.leaves(found)] == [10, 6]


def test_keys_of_different_kinds_that_are_called_alike() -> None:
    """An OrderedDict may hold both 1 and "1": then the kinds count too."""
    params = collections.OrderedDict([(1, PARAMS["a"]), ("1", PARAMS["b"])])
    masks = collections.OrderedDict([(1, MASKS["a"]), ("1", MASKS["b"])])
    got = jprune.apply_masks(params, masks)
    assert [int((p != 0).sum()) for p in got.values()] == [2, 3]


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1), (1, 1), ()])
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    mask = np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape) % 2 == 0
    params = {"b": PARAMS["b"]}
    wanted = np.where(mask, np.asarray(params["b"]), 0)
    got = jprune.apply_masks(params, {"b": mask})
    np.testing.assert_array_equal(got["b"], wanted)
    state = jprune.keep_masks({"b": mask}).init(params)
    assert state.masks["b"].shape == (2, 3)
    assert state.masks["b"].sum() == np.broadcast_to(mask, (2, 3)).sum()


def test_masks_broadcast_under_strict_promotion() -> None:
    params = {"w": PARAMS["b"].astype(jnp.bfloat16)}
    masks = {"w": np.array([True, False, True])}
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        for apply in (jprune.apply_masks, jprune.straight_through):
            assert int((apply(params, masks)["w"] != 0).sum()) == 4
        apply = partial(jprune.straight_through, decay=0.1)
        total = lambda params: jnp.sum(apply(params, masks)["w"])
        assert jax.grad(total)(params)["w"].dtype == jnp.bfloat16
        full = jprune.keep_masks(masks).init(params).masks
        assert float(jprune.measure_sparsity(full)) == pytest.approx(1 / 3)
        assert jprune.summarize(params, masks).kept == 4
        assert jprune.read_masks(params)["w"].all()
        tx = jprune.keep_masks(masks)
        jprune.get_masks(tx.update(params, tx.init(params), params)[1])


FLOAT8 = [
    name
    for name in dir(jnp)
    if name.startswith(("float8", "float4")) and name != "float8_e8m0fnu"
]


@pytest.mark.parametrize("name", FLOAT8)
def test_leaves_of_eight_bits(name: str) -> None:
    w = jnp.array([[1.0, 2.0], [0.0, -0.0]]).astype(getattr(jnp, name))
    masks = {"w": jnp.array([[True, False], [True, True]])}
    params = {"w": w}
    for got in (
        jprune.apply_masks(params, masks),
        jprune.straight_through(params, masks),
        jax.jit(partial(jprune.straight_through, decay=0.5))(params, masks),
    ):
        assert got["w"].dtype == w.dtype
        numbers = np.asarray(got["w"], np.float32)
        np.testing.assert_array_equal(numbers, [[1, 0], [0, 0]])
    (row,) = jprune.summarize(params, masks).leaves
    assert (row.dtype, row.kept, row.zeros) == (name, 3, 2)
    assert jprune.read_masks(params, "w")["w"].tolist() == (
        [[True, True], [False, False]]
    )
    assert jprune.keep_masks(masks).init(params).masks["w"].sum() == 3


def test_what_has_no_zero_is_not_masked() -> None:
    """In float8_e8m0fnu a masked weight would be NaN."""
    params = {"scales": jnp.ones((2, 2), jnp.float8_e8m0fnu), "w": jnp.eye(2)}
    masks = jprune.read_masks(params)
    assert masks["scales"] == optax.MaskedNode()
    assert jprune.summarize(params).zeros == 2
    with pytest.raises(ValueError, match="'scales' must be a real floating"):
        jprune.keep_masks({"scales": True}).init(params)


TINY = {  # the smallest numbers above 0, which backends may take for 0
    name: jnp.finfo(name).smallest_subnormal
    for name in ("float16", "bfloat16", "float32", "float64")
}


@pytest.mark.parametrize("name", TINY)
def test_read_masks_reads_exact_zeros(name: str) -> None:
    with jax.enable_x64(name == "float64"):
        numbers = [0.0, -0.0, TINY[name], -TINY[name], np.nan, np.inf, 1.0]
        w = jnp.asarray(np.array(numbers, name))
        wanted = [False, False, True, True, True, True, True]
        for read in (jprune.read_masks, jax.jit(jprune.read_masks)):
            masks = read({"kernel": w[None], "bias": jnp.zeros(3)})
            assert masks["kernel"].tolist() == [wanted]
            assert masks["bias"] == optax.MaskedNode()
        assert jprune.summarize({"kernel": w[None]}).zeros == 2
        found = jprune.read_masks({"w": w}, where="w")
        assert found["w"].tolist() == wanted


def test_read_masks_of_what_was_pruned() -> None:
    masks = jprune.find_masks(PARAMS, 0.5)
    read = jprune.read_masks(jprune.apply_masks(PARAMS, masks))
    assert_masks(read, masks)


def sgd(pruner: Any) -> Any:
    return optax.chain(optax.sgd(0.1, momentum=0.9), pruner)


def labels(params: Any) -> Any:
    return {name: "second" if name == "b" else "first" for name in params}


KEEP = jprune.keep_masks(MASKS)
COMPOSITIONS = {
    "alone": lambda: KEEP,
    "chain": lambda: sgd(KEEP),
    "named_chain": lambda: optax.named_chain(
        ("descend", optax.sgd(0.1)), ("prune", KEEP)
    ),
    "nested": lambda: optax.chain(sgd(optax.chain(KEEP)), optax.identity()),
    "MultiSteps": lambda: optax.MultiSteps(sgd(KEEP), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(sgd(KEEP), 3),
    "masked": lambda: optax.masked(
        sgd(KEEP), {"a": True, "b": True, "bias": False}
    ),
    "masked by nothing": lambda: optax.masked(sgd(KEEP), lambda p: True),
    "partition": lambda: optax.partition(
        {"first": sgd(KEEP), "second": optax.chain(optax.adam(0.1), KEEP)},
        labels,
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.sgd(learning_rate), KEEP)
    )(learning_rate=0.1),
    "merged": lambda: optax.chain(
        jprune.keep_masks({"a": MASKS["a"], "b": None, "bias": None}),
        jprune.keep_masks({"a": True, "b": MASKS["b"], "bias": None}),
    ),
    "everything": lambda: optax.MultiSteps(
        optax.masked(
            optax.partition({"first": KEEP, "second": sgd(KEEP)}, labels),
            {"a": True, "b": True, "bias": False},
        ),
        2,
    ),
}


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_get_masks(composition: str) -> None:
    tx = COMPOSITIONS[composition]()
    state = tx.init(PARAMS)
    assert_masks(jprune.get_masks(state), MASKS)
    _, state = tx.update(PARAMS, state, PARAMS)
    assert_masks(jprune.get_masks(state), MASKS)
    assert_masks(jax.jit(jprune.get_masks)(state), MASKS)


def test_get_masks_of_different_methods() -> None:
    taylor = jprune.criteria.taylor()
    prune_by_taylor = jprune.prune(1 / 3, where="^b$", criterion=taylor)
    tx = optax.partition(
        {
            "first": sgd(jprune.prune(0.5)),
            "second": jprune.with_gradients(sgd(prune_by_taylor)),
        },
        labels,
    )
    grads = jax.tree.map(jnp.cos, PARAMS)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    wanted = jprune.find_masks(PARAMS, 0.5, where="^a$")
    wanted = jprune.find_masks(
        PARAMS, 1 / 3, where="^b$", criterion=taylor, grads=grads, masks=wanted
    )
    assert_masks(jprune.get_masks(state), wanted)


def test_several_pruners_prune_what_any_prunes() -> None:
    one = {"a": MASKS["a"], "b": None, "bias": None}
    two = {"a": ~MASKS["a"] | jnp.eye(2, dtype=bool), "b": None, "bias": None}
    tx = optax.chain(jprune.keep_masks(one), jprune.keep_masks(two))
    state = tx.init(PARAMS)
    masks = jprune.get_masks(state)
    np.testing.assert_array_equal(masks["a"], one["a"] & two["a"])
    updates, _ = tx.update(PARAMS, state, PARAMS)
    landed = optax.apply_updates(PARAMS, updates)
    assert not landed["a"][~masks["a"]].any()


def test_get_masks_without_a_pruner() -> None:
    tx = optax.chain(optax.adam(0.1), jprune.project_frobenius_ball(1.0))
    with pytest.raises(ValueError, match="found no pruner"):
        jprune.get_masks(tx.init(PARAMS))
    with pytest.raises(ValueError, match="found no pruner"):
        jprune.get_masks(())


def test_measure_sparsity() -> None:
    measure = jax.jit(jprune.measure_sparsity)
    assert float(measure(MASKS)) == pytest.approx(5 / 10)
    assert float(jprune.measure_sparsity(MASKS)) == float(measure(MASKS))
    assert float(measure({"a": None, "b": jnp.zeros((3, 0), bool)})) == 0
    assert float(measure(jnp.zeros((7,), bool))) == 1
    assert float(measure(jnp.ones((7,), bool))) == 0
    both = jnp.stack([MASKS["a"], jnp.ones_like(MASKS["a"])])
    np.testing.assert_array_equal(jax.vmap(measure)(both), [0.5, 0.0])
    assert measure(MASKS).shape == ()


def test_measured_sparsity_is_what_was_asked_for() -> None:
    masks = jprune.find_masks(jnp.arange(81.0).reshape(9, 9), 0.5)
    assert float(jprune.measure_sparsity(masks)) == pytest.approx(40 / 81)


def test_summarize() -> None:
    params = {**PARAMS, "steps": jnp.array(3)}
    masks = {**MASKS, "steps": None}
    summary = jprune.summarize(params, masks)
    rows = {leaf.path: leaf for leaf in summary.leaves}
    assert (rows["a"].weights, rows["a"].kept, rows["a"].zeros) == (4, 2, 0)
    assert (rows["b"].kept, rows["b"].shape) == (3, (2, 3))
    assert not rows["bias"].masked
    assert (summary.weights, summary.kept, summary.zeros) == (13, 8, 0)
    assert summary.sparsity == pytest.approx(5 / 10)
    pruned = jprune.summarize(jprune.apply_masks(params, masks), masks)
    assert pruned.zeros == 5


def test_summarize_without_masks() -> None:
    params = {**PARAMS, "steps": jnp.array(0), "bias": jnp.array([0.0, 1.0])}
    pruned = jprune.apply_masks(params, MASKS)
    summary = jprune.summarize(pruned)
    assert summary == jprune.summarize(pruned, jprune.read_masks(pruned))
    rows = {leaf.path: leaf for leaf in summary.leaves}
    assert (rows["a"].kept, rows["a"].zeros, rows["a"].masked) == (2, 2, True)
    assert (rows["bias"].kept, rows["bias"].zeros) == (2, 1)
    assert summary.sparsity == pytest.approx(5 / 10)
    lines = str(summary).splitlines()
    assert lines[2].split()[-4:] == ["4", "2", "50.0%", "2"]
    assert lines[4].split()[-4:] == ["2", "2", "-", "1"]
    nothing = jprune.summarize({"bias": jnp.zeros(2), "steps": jnp.array(0)})
    assert (nothing.kept, nothing.zeros, nothing.sparsity) == (3, 3, 0)


def test_summary_prints_a_table() -> None:
    lines = str(jprune.summarize(PARAMS, MASKS)).splitlines()
    assert lines[0].split() == (
        ["leaf", "shape", "dtype", "weights", "kept", "sparsity", "zeros"]
    )
    assert lines[2].split() == ["a", "2x2", "float32", "4", "2", "50.0%", "0"]
    assert lines[4].split() == ["bias", "2", "float32", "2", "2", "-", "0"]
    assert lines[-1].split() == ["total", "12", "7", "50.0%", "0"]
    assert len({line.rfind(" ") for line in lines[2:5]}) == 1, "aligned"
    assert str(jprune.summarize({}, {})).splitlines()[-1].split()[0] == "total"


def test_summarize_broadcast_and_16_bits() -> None:
    params = {"w": jnp.zeros((2, 3), jnp.bfloat16)}
    (leaf,) = jprune.summarize(params, {"w": jnp.array([[True], [False]])})[0]
    assert leaf == ("w", (2, 3), "bfloat16", 6, 3, 6, True)


def test_summarize_refuses_traced_values() -> None:
    with pytest.raises(ValueError, match=r"'a' is traced"):
        jax.jit(lambda p: jprune.summarize(p, MASKS).kept)(PARAMS)


@pytest.mark.parametrize("bad", [np.array([1, 0]), np.array([1.0, 0.0])])
def test_sparsity_of_numbers_is_refused(bad):
    with pytest.raises(
        ValueError, match=r"measure_sparsity.*'a/w' must be bool"
    ):
        jprune.measure_sparsity({"a": {"w": bad}})


def test_summary_of_random_keys():
    params = {"key": jax.random.key(0), "w": jnp.eye(2)}
    summary = jprune.summarize(params, jprune.find_masks(params, 0.5))
    assert summary.zeros == 2
