"""What matters: scores against NumPy, and where their gradients come from."""

import functools
import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import criteria, structures
from jprune.allocations import global_ranking
from jprune.structures import Structure

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": RNG.normal(size=(5, 4)), "bias": np.ones(4)},
    "b": {"kernel": RNG.normal(size=(4, 6))},
}
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
ADAM = optax.adam(1e-2)
NEEDY: dict[str, Callable[[], criteria.Criterion]] = {
    "gradient()": criteria.gradient,
    "taylor()": criteria.taylor,
    "movement()": criteria.movement,
    "fisher()": criteria.fisher,
    "custom(fn, grads=True)": lambda: criteria.custom(
        lambda params, grads: grads, grads=True
    ),
}


def gradients(step: int) -> Any:
    return jax.tree.map(lambda p: jnp.sin(9 * p + step), PARAMS)


def kernels(tree: Any) -> dict[str, np.ndarray]:
    """The pruned leaves in float64."""
    return {n: np.asarray(tree[n]["kernel"], np.float64) for n in "ab"}


def best(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """True for the highest scores of one leaf, none of which are equal."""
    lost = round(sparsity * scores.size)
    return scores > np.sort(scores, axis=None)[lost - 1]


ONE_SHOT: dict[str, tuple[Any, Any]] = {
    "gradient": (criteria.gradient(), lambda w, g: np.abs(g)),
    "absolute": (criteria.taylor(), lambda w, g: np.abs(w * g)),
    "signed": (criteria.taylor("signed"), lambda w, g: -w * g),
    "squared": (criteria.taylor("squared"), lambda w, g: (w * g) ** 2),
    "movement": (criteria.movement(), lambda w, g: -w * g),
    "fisher": (criteria.fisher(), lambda w, g: (w * g) ** 2),
    "custom": (
        criteria.custom(
            lambda params, grads: jax.tree.map(jnp.multiply, params, grads),
            grads=True,
        ),
        lambda w, g: w * g,
    ),
}


@pytest.mark.parametrize("name", ONE_SHOT)
def test_once(name: str) -> None:
    criterion, formula = ONE_SHOT[name]
    found = jprune.find_masks(
        PARAMS, 0.4, criterion=criterion, grads=gradients(0)
    )
    for n, g in kernels(gradients(0)).items():
        wanted = best(formula(kernels(PARAMS)[n], g), 0.4)
        np.testing.assert_array_equal(found[n]["kernel"], wanted)
    assert found["a"]["bias"] == optax.MaskedNode()


@pytest.mark.parametrize(
    "name", ["movement", pytest.param("fisher", marks=pytest.mark.slow)]
)
def test_scores_add_up_over_steps(name: str) -> None:
    """Dense until step 3; the sums are those of the raw gradients."""
    criterion, formula = ONE_SHOT[name]
    late = optax.piecewise_constant_schedule(0.0, {3: 1.0})
    prune = jprune.prune(
        lambda t: late(t) + 0.4 * (t == 3), criterion=criterion
    )
    tx = jprune.with_gradients(optax.chain(ADAM, prune))
    params, state = PARAMS, tx.init(PARAMS)
    sums = {n: np.zeros(w.shape) for n, w in kernels(params).items()}
    for step in range(4):
        for n, g in kernels(gradients(step)).items():
            sums[n] += formula(kernels(params)[n], g)
        updates, state = jax.jit(tx.update)(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    for n, wanted in sums.items():
        got = state[-1].criterion[n]["kernel"]
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        masks = jprune.get_masks(state)[n]["kernel"]
        np.testing.assert_array_equal(masks, best(wanted, 0.4))
    assert state[-1].criterion["a"]["bias"] == optax.MaskedNode()


@pytest.mark.parametrize("name", ["absolute", "squared", "movement", "fisher"])
def test_scores_of_16_bits_do_not_underflow(name: str) -> None:
    """In float16 every one of these products is 0."""
    criterion, _ = ONE_SHOT[name]
    w = jnp.array([[1.0, -2, 3, -4]], jnp.float16) * 1e-4
    grads = jnp.array([[-4.0, 1, -2, 0.1]], jnp.float16) * 1e-5
    assert not (w * grads).any()
    masks = jprune.find_masks(w, 0.5, criterion=criterion, grads=grads)
    np.testing.assert_array_equal(masks, [[True, False, True, False]])


@pytest.mark.parametrize("name", ["movement", "fisher"])
def test_a_state_costs_one_fused_pass(name: str) -> None:
    """Weights, gradients and sums are read once, sums written once."""
    criterion, _ = ONE_SHOT[name]
    w = jax.ShapeDtypeStruct((1000, 64), jnp.float32)
    program = jax.jit(criterion.update).lower(w, w, w).compile()
    costs: Any = program.cost_analysis()
    assert costs["bytes accessed"] == 4 * 4 * 64_000


def test_the_state_keeps_its_dtype() -> None:
    """Whatever the dtype of the gradients: a scan needs that."""
    with jax.enable_x64(True):
        w, g = jnp.ones((2, 2), jnp.bfloat16), jnp.ones((2, 2), jnp.float64)
        tx = jprune.prune(0.5, criterion=criteria.fisher())
        state = tx.init(w)
        after = jax.eval_shape(lambda: tx.update(w, state, w, grad=g)[1])
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        assert after.criterion.dtype == jnp.float32
        wide = tx.init(w.astype(jnp.float64))
        assert wide.criterion.dtype == jnp.float64


def columns(pool: Callable[[jax.Array], jax.Array]) -> Structure:
    """Columns are units, of one pool."""

    def to_masks(units: Any, params: Any) -> Any:
        return jax.tree.map(
            lambda p, u: jnp.broadcast_to(u[0], p.shape), params, units
        )

    return Structure(
        lambda scores: jax.tree.map(lambda s: pool(s)[None], scores), to_masks
    )


MEAN = columns(lambda s: s.mean(axis=0))
L2 = columns(lambda s: jnp.sqrt(jnp.square(s).sum(axis=0)))


@pytest.mark.parametrize(
    ("form", "structure", "order"),
    [
        # The products of the columns: (3, -3), (1, 1), (-2, -1), (2, 2)
        ("absolute", MEAN, [1, 2, 3, 0]),  # means 1, 1.5, 2, 3
        ("absolute", L2, [1, 2, 3, 0]),  # roots of 2, 5, 8, 18
        ("signed", MEAN, [3, 1, 0, 2]),  # means -2, -1, 0, 1.5
        ("squared", MEAN, [0, 1, 2, 3]),  # squares of 0, 1, 1.5, 2
        ("squared", L2, [1, 2, 3, 0]),  # 2, 5, 8, 18
    ],
)
def test_forms_of_taylor_in_groups(
    form: Any, structure: Structure, order: list[int]
) -> None:
    products = jnp.array([[3.0, 1, -2, 2], [-3, 1, -1, 2]])
    w = jnp.full((2, 4), -0.5)
    for lost in range(1, 4):
        masks = jprune.find_masks(
            w,
            lost / 4,
            grads=products / w,
            criterion=criteria.taylor(form),
            structure=structure,
        )
        assert np.flatnonzero(~masks[0]).tolist() == sorted(order[:lost])


def test_the_signed_form_is_the_change_of_a_linear_loss() -> None:
    w, slope = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
    masks = jprune.find_masks(
        w,
        0.25,
        grads=slope,
        criterion=criteria.taylor("signed"),
        structure=MEAN,
    )
    change = [-(w * slope)[:, i].sum() for i in range(4)]
    assert np.flatnonzero(~masks[0]).tolist() == [int(np.argmin(change))]


@pytest.mark.parametrize("pooling", ["l2", "l1"])
@pytest.mark.parametrize("form", ["movement", "signed", "squared"])
def test_norms_keep_signs(form: str, pooling: str) -> None:
    """The norm of the positive scores less that of the negative ones."""
    w, slope = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
    criterion = (
        criteria.movement() if form == "movement" else criteria.taylor(form)  # type: ignore[arg-type]
    )
    masks = jprune.find_masks(
        w,
        0.5,
        grads=slope,
        criterion=criterion,
        structure=structures.channel(pooling=pooling),
    )
    scores = np.asarray(w * slope) * (1 if form == "squared" else -1)
    order = 2 if pooling == "l2" else 1
    gain, loss = (
        np.linalg.norm(np.maximum(x, 0), order, axis=0)
        for x in (scores, -scores)
    )
    total = (gain - loss) ** 2 if form == "squared" else gain - loss
    kept = np.sort(np.argsort(total)[2:])
    np.testing.assert_array_equal(np.flatnonzero(masks[0]), kept)


def test_signs_decide_in_channels() -> None:
    """A column that training shrinks goes before one that it hardly moves."""
    w = jnp.ones((2, 3))
    slopes = jnp.array([[5.0, -0.1, -1], [5, -0.1, -1]])
    masks = jprune.find_masks(
        w,
        1 / 3,
        grads=slopes,
        criterion=criteria.movement(),
        structure=structures.channel(pooling="mean"),
    )
    assert masks[0].tolist() == [False, True, True]


@pytest.mark.parametrize("name", NEEDY)
def test_missing_gradients(name: str) -> None:
    criterion = NEEDY[name]()
    both = r"grads=grads\)`.*`jprune\.with_gradients"
    message = f"^`{re.escape(name)}` needs gradients: .*{both}"
    with pytest.raises(ValueError, match=message):
        jprune.find_masks(PARAMS, 0.5, criterion=criterion)
    tx = optax.chain(ADAM, jprune.prune(0.5, criterion=criterion))
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=message):
        jax.jit(tx.update)(PARAMS, state, PARAMS)


def squared_error(params: Any, batch: Any) -> jax.Array:
    return jnp.sum(jnp.square(batch["x"] @ params["w"] - batch["y"]))


BATCH = {
    "x": jnp.asarray(RNG.normal(size=(9, 4)), jnp.float32),
    "y": jnp.asarray(RNG.normal(size=(9, 3)), jnp.float32),
}
LINEAR = {
    "w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32),
    "steps": jnp.array(7),
}


def test_snip() -> None:
    criterion = criteria.snip(squared_error, LINEAR, BATCH)
    masks = jprune.find_masks(LINEAR, 0.5, criterion=criterion, where="w")
    x, y, w = (
        np.asarray(v, np.float64) for v in (BATCH["x"], BATCH["y"], LINEAR["w"])
    )
    wanted = best(np.abs(w * (2 * x.T @ (x @ w - y))), 0.5)
    np.testing.assert_array_equal(masks["w"], wanted)
    other = {"w": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match=r"`snip.*have the leaf 'v'"):
        jprune.find_masks({"v": other["w"]}, 0.5, criterion=criterion)


def test_snip_in_training_keeps_its_first_scores() -> None:
    """They are in the state, copied, and in no compiled update."""
    params = {"w": LINEAR["w"]}
    criterion = criteria.snip(squared_error, params, BATCH)
    wanted = jprune.find_masks(params, 0.5, criterion=criterion)
    tx = optax.chain(ADAM, jprune.prune(0.5, criterion=criterion))
    first = tx.init(params)
    jax.tree.map(lambda leaf: leaf.delete(), first)  # as if it were donated
    state = tx.init(params)
    other = jax.tree.map(lambda w: w[::-1], params)  # scores do not follow
    _, after = tx.update(params, state, other)
    chex.assert_trees_all_equal(jprune.get_masks(after), wanted)
    program = jax.make_jaxpr(tx.update)(params, state, other)
    assert all(np.size(c) < 12 for c in program.consts)


@pytest.mark.slow
def test_custom_scores_of_16_bits_do_not_overflow() -> None:
    """Sums over a unit and over a layer: as scores of 32 bits."""
    x = jnp.asarray(RNG.uniform(200, 250, (500, 4)), jnp.float16)
    assert jnp.isinf(jnp.cumsum(x, 0)[-1]).all()
    own = criteria.custom(jnp.abs)
    for method in (
        {"structure": structures.channel(pooling="mean")},
        {"structure": structures.channel(pooling="l1")},
        {"allocation": global_ranking("lamp")},
    ):
        wanted = jprune.find_masks(x, 0.5, **method)
        found = jprune.find_masks(x, 0.5, criterion=own, **method)
        np.testing.assert_array_equal(found, wanted)


def test_custom_with_a_tree_of_scores() -> None:
    """Scores of everything, of which only the pruned leaves are read."""
    scores = jax.tree.map(lambda p: -jnp.abs(p), PARAMS)
    found = jprune.find_masks(
        PARAMS, 0.4, criterion=criteria.custom(lambda params: scores)
    )
    for n, w in kernels(PARAMS).items():
        np.testing.assert_array_equal(found[n]["kernel"], best(-np.abs(w), 0.4))
    assert found["a"]["bias"] == optax.MaskedNode()


@pytest.mark.parametrize(
    "fn",
    [
        functools.partial(jax.tree.map, jnp.abs),
        jax.jit(lambda params: jax.tree.map(jnp.abs, params)),
        lambda params, power=1: jax.tree.map(
            lambda p: jnp.abs(p) ** power, params
        ),
        lambda *trees: jax.tree.map(jnp.abs, *trees),
    ],
)
def test_custom_calls_with_the_parameters_alone(fn: Any) -> None:
    """Whatever else the function could take."""
    found = jprune.find_masks(
        PARAMS, 0.4, criterion=criteria.custom(fn), grads=gradients(0)
    )
    chex.assert_trees_all_equal(found, jprune.find_masks(PARAMS, 0.4))


def test_custom_hands_on_gradients_if_asked() -> None:
    """Also to a function that could do without."""

    def score(params: Any, grads: Any = None) -> Any:
        return jax.tree.map(jnp.abs, params if grads is None else grads)

    find = functools.partial(jprune.find_masks, PARAMS, 0.4, grads=gradients(0))
    for grads, same in (
        (False, criteria.magnitude()),
        (True, criteria.gradient()),
    ):
        chex.assert_trees_all_equal(
            find(criterion=criteria.custom(score, grads=grads)),
            find(criterion=same),
        )


def saliency(params: Any, grads: Any) -> Any:
    return jax.tree.map(jnp.multiply, params, grads)


@pytest.mark.parametrize(
    ("fn", "grads", "message"),
    [
        (
            saliency,
            False,
            "`custom(fn)` calls `fn` with params, which `saliency` does not "
            "take: its arguments are (params, grads); "
            "`custom(fn, grads=True)` fits it.",
        ),
        (
            lambda params: params,
            True,
            "`custom(fn, grads=True)` calls `fn` with (params, grads), which "
            "`<lambda>` does not take: its arguments are (params); "
            "`custom(fn)` fits it.",
        ),
        (
            lambda: 1,
            False,
            "`custom(fn)` calls `fn` with params, which `<lambda>` does not "
            "take: its arguments are ().",
        ),
    ],
)
def test_custom_refuses_a_function_of_other_arguments(
    fn: Any, grads: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        criteria.custom(fn, grads=grads)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (
            criteria.custom(lambda params: jax.tree.leaves(params)),
            r"the parameters have the leaf 'a/kernel', the given tree has not",
        ),
        (
            criteria.custom(lambda p: jax.tree.map(lambda w: w > 0, p)),
            r"of 'a/kernel' must be floating of shape \(5, 4\), got bool",
        ),
        (
            criteria.fisher()._replace(update=lambda grads, state, params: ()),
            r"must return a state like `init`, .*got PyTreeDef\(\(\)\)",
        ),
        (
            criteria.fisher()._replace(
                update=lambda grads, state, params: jax.tree.map(
                    lambda w: w.astype(jnp.float16), params
                )
            ),
            r"`init`: 'a/kernel' is float32 of shape \(5, 4\), got float16",
        ),
    ],
)
def test_a_criterion_of_another_form_is_refused(
    criterion: criteria.Criterion, message: str
) -> None:
    tx = jprune.prune(0.5, criterion=criterion)
    with pytest.raises(
        ValueError, match=r"`prune\(criterion=...\)`.*" + message
    ):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(np.int64(3), marks=pytest.mark.slow),
        jax.random.key(3),
        pytest.param(jax.random.PRNGKey(3), marks=pytest.mark.slow),
        jax.random.key(3, impl="rbg"),
    ],
)
def test_a_key_is_as_good_as_a_seed(key: Any) -> None:
    """And keeps its implementation."""
    params = PARAMS["b"]
    tx = jprune.prune(0.5, criterion=criteria.random(), key=key)
    _, state = tx.update(params, tx.init(params), params)
    typed = isinstance(key, jax.Array) and not key.ndim
    wanted = jprune.find_masks(
        params,
        0.5,
        criterion=criteria.random(),
        key=jax.random.fold_in(key if typed else jax.random.key(3), 0),
    )
    chex.assert_trees_all_equal(state.masks, wanted)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.sweep(2)
def test_random_masks_lie_where_the_weights_do(kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    w, random = jnp.ones((8, 4)), criteria.random()
    wanted = jprune.find_masks(w, 0.5, criterion=random, key=0)
    with jax.set_mesh(mesh):
        placed = jax.device_put(w, NamedSharding(mesh, P("x", "y")))
        found = jprune.find_masks(placed, 0.5, criterion=random, key=0)
    np.testing.assert_array_equal(found, wanted)
    assert found.sharding.is_equivalent_to(placed.sharding, 2)
