"""Bad input is refused with the call, the place and the value."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jprune
from jprune import allocations, criteria, projections, selection, structures

PARAMS = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
MASKS = jprune.find_masks(PARAMS, 0.5)
INTEGERS = {"a": {"kernel": jnp.ones((3, 4), jnp.int32)}}
COMPLEX = {"a": {"kernel": jnp.ones((3, 4), jnp.complex64)}}


def wrong(mask: Any) -> Any:
    return {"a": {"kernel": mask, "bias": None}}


WHEN_MADE: list[tuple[str, Callable[[], Any]]] = [
    ("`prune(sparsity=...)` must lie in [0, 1], got 1.5", lambda: jprune.prune(1.5)),
    ("`prune(sparsity=...)` must lie in [0, 1], got -0.1", lambda: jprune.prune(-0.1)),
    ("`prune(sparsity=...)` must lie in [0, 1], got nan", lambda: jprune.prune(np.nan)),
    (
        "`prune(sparsity=...)` must lie in [0, 1], got 2.0",
        lambda: jprune.prune(optax.constant_schedule(2.0)),
    ),
    ("`prune(sparsity=...)` must be a number", lambda: jprune.prune("0.5")),
    ("`prune(sparsity=...)` must be a number", lambda: jprune.prune(True)),
    (
        "`prune(sparsity=...)` must be a number or a schedule",
        lambda: jprune.prune(optax.polynomial_schedule),
    ),
    (
        "`find_masks(sparsity=...)` must lie in [0, 1], got 1.5",
        lambda: jprune.find_masks(PARAMS, 1.5),
    ),
    (
        "`find_masks(sparsity=...)` must be a number, got the schedule",
        lambda: jprune.find_masks(PARAMS, optax.constant_schedule(0.5)),
    ),
    ("`prune(key=...)` must be a seed or one random key", lambda: jprune.prune(0.5, key="a")),
    ("`prune(key=...)` must be a seed or one random key", lambda: jprune.prune(0.5, key=None)),
    ("`find_masks(key=...)` must be a seed or one random key", lambda: jprune.find_masks(PARAMS, 0.5, key=0.5)),
    ("must be a seed or one random key, an int or `jax.random.key(0)`, got True", lambda: jprune.prune(0.5, key=True)),
    (
        "`rewire(key=...)` must be a seed or one random key, an int or `jax.random.key(0)`, got an array of keys of shape (2,)",
        lambda: jprune.rigl(optax.sgd(0.1), 0.5, stop=9, key=jax.random.split(jax.random.key(0))),
    ),
    (
        "got an array of uint32 of shape (3,)",
        lambda: jprune.prune(0.5, key=jnp.zeros(3, jnp.uint32)),
    ),
    ("got an array of float32", lambda: jprune.prune(0.5, key=jnp.zeros(2))),
    ("`prune(every=...)` must be an integer >= 1, got 0", lambda: jprune.prune(0.5, every=0)),
    ("`prune(every=...)` must be an integer >= 1, got 1.5", lambda: jprune.prune(0.5, every=1.5)),
    (
        "`project(every=...)` must be an integer >= 1, got -1",
        lambda: jprune.project(projections.frobenius_ball(1.0), every=-1),
    ),
    (
        "`project_frobenius_ball(radius)` must be a positive number, got 0.0",
        lambda: jprune.project_frobenius_ball(0.0),
    ),
    (
        "`project_frobenius_ball(radius)` must be a positive number, got nan",
        lambda: jprune.project_frobenius_ball(float("nan")),
    ),
    (
        "`frobenius_ball(radius)` must be a positive number, got -1.0",
        lambda: projections.frobenius_ball(-1.0),
    ),
    (
        "`project_frobenius_ball(per=...)` must be 'tree' or 'leaf', got 'row'",
        lambda: jprune.project_frobenius_ball(1.0, per="row"),
    ),
    (
        "`prune(criterion=...)` got the function `magnitude` itself; call it",
        lambda: jprune.prune(0.5, criterion=criteria.magnitude),
    ),
    (
        "`find_masks(structure=...)` got the function `unstructured` itself",
        lambda: jprune.find_masks(PARAMS, 0.5, structure=structures.unstructured),
    ),
    (
        "`prune(allocation=...)` got the function `uniform` itself",
        lambda: jprune.prune(0.5, allocation=allocations.uniform),
    ),
    (
        "`find_masks(structure=...)` must be of type `Structure`, got `fisher()`.",
        lambda: jprune.find_masks(PARAMS, 0.5, structure=criteria.fisher()),
    ),
    (
        "`prune(criterion=...)` must be of type `Criterion`, got `soft_threshold(0.1)`.",
        lambda: jprune.prune(0.5, criterion=projections.soft_threshold(0.1)),
    ),
    (
        "`prune(criterion=...)` must be of type `Criterion`, got 'magnitude'. `jprune.criteria.magnitude()`?",
        lambda: jprune.prune(0.5, criterion="magnitude"),
    ),
    (
        "`prune(structure=...)` must be of type `Structure`, got 'block'. `jprune.structures.block(...)`?",
        lambda: jprune.prune(0.5, structure="block"),
    ),
    (
        "`prune(allocation=...)` must be of type `Allocation`, got 'global'. `jprune.allocations` has erdos_renyi, fitted, given, global_ranking, uniform",
        lambda: jprune.prune(0.5, allocation="global"),
    ),
    (
        "`prune(structure=...)` must be of type `Structure`, got `magnitude()`",
        lambda: jprune.prune(0.5, structure=criteria.magnitude()),
    ),
    (
        "`find_masks(params, sparsity)`: the parameters come first, got 0.5 and a `dict` with the leaves 'a/bias', 'a/kernel'",
        lambda: jprune.find_masks(0.5, PARAMS),
    ),
    (
        "`find_masks(params, sparsity)`: the parameters come first, got 0.5 and float32 of shape (3, 4)",
        lambda: jprune.find_masks(0.5, jnp.ones((3, 4))),
    ),
    (
        "`prune(sparsity=...)` must be one number, got {'a': 0.5}. For layers with numbers of their own use `optax.partition`",
        lambda: jprune.prune({"a": 0.5}),
    ),
    (
        "`find_masks(sparsity=...)` must be one number, got {'a': 0.5}. For layers with numbers of their own call it once for each, with `where=`",
        lambda: jprune.find_masks(PARAMS, {"a": 0.5}),
    ),
    (
        "`project(projection)` got the factory `frobenius_ball` itself; call it",
        lambda: jprune.project(projections.frobenius_ball),
    ),
    ("`project(projection)` must be a function", lambda: jprune.project(3.0)),
    (
        "`prune(where=...)`: the regular expression '(' does not compile",
        lambda: jprune.prune(0.5, where="("),
    ),
    (
        "`project(where=...)`: the regular expression '(' does not compile",
        lambda: jprune.project(lambda tree: tree, where="("),
    ),
    (
        "`prune(where=...)` got several names; write one regular expression: `where='a/kernel|b'`",
        lambda: jprune.prune(0.5, where=["a/kernel", "b"]),
    ),
    (
        "`prune(where=...)` got a compiled pattern; write `where='kernel$'`",
        lambda: jprune.prune(0.5, where=re.compile("kernel$")),
    ),
    (
        "`read_masks(where=...)`: the regular expression '(' does not compile",
        lambda: jprune.read_masks(PARAMS, where="("),
    ),
    (
        "`read_masks(where=...)` selects no parameter, got 'no_such'",
        lambda: jprune.read_masks(PARAMS, where="no_such"),
    ),
    (
        "`jprune.read_masks(params)` makes masks of the zeros in the parameters",
        lambda: jprune.get_masks(jprune.project(lambda tree: tree).init(PARAMS)),
    ),
    (
        "`apply_masks(params, masks)`: the leaf 'w' must be a real floating array, got float8_e8m0fnu",
        lambda: jprune.apply_masks({"w": jnp.ones(2, jnp.float8_e8m0fnu)}, {"w": True}),
    ),
    (
        "`block((8, 8))` does not fit into 'a/kernel', whose window, in and out axes have the sizes (3, 4); `where=` can leave the leaf out",
        lambda: jprune.find_masks(PARAMS, 0.5, structure=structures.block((8, 8))),
    ),
    (
        "`n_m(2, 4)`: the contracted axis of 'a/kernel' has 3 entries, which 4 does not divide; `where=` can leave the leaf out",
        lambda: jprune.find_masks(PARAMS, 0.5, structure=structures.n_m(2, 4)),
    ),
    (
        "`top_k_mask(scores, k)`: k must be an integer from 0 to 3, the number of scores, got 4",
        lambda: selection.top_k_mask(jnp.ones(3), 4),
    ),
    (
        "`top_k_mask(scores, k)`: k must be a number, got None",
        lambda: selection.top_k_mask(jnp.ones(3), None),
    ),
    (
        "`top_k_mask(scores, k)`: k must be an integer from 0 to 3, the number of scores, got nan",
        lambda: selection.top_k_mask(jnp.ones(3), np.nan),
    ),
    (
        "`snip(loss, params, batch)`: loss must be a function",
        lambda: criteria.snip(3, PARAMS, None),
    ),
    (
        "`top_k_mask(scores, k)`: the leaf 'a/kernel' must be a real floating array, got int32",
        lambda: selection.top_k_mask(INTEGERS, 1),
    ),
    (
        "`random()` needs a key",
        lambda: jprune.find_masks(PARAMS, 0.5, criterion=criteria.random()),
    ),
    (
        "`fisher()` needs gradients: `find_masks(..., grads=grads)`, or in training `jprune.with_gradients(",
        lambda: jprune.find_masks(PARAMS, 0.5, criterion=criteria.fisher()),
    ),
    (
        "`find_masks(grads=...)`: the gradient of 'a/kernel' must be floating of shape (3, 4), got float32 of shape (4, 3)",
        lambda: jprune.find_masks(PARAMS, 0.5, grads=wrong(jnp.ones((4, 3)))),
    ),
    (
        "`taylor(form)` must be one of 'absolute', 'signed', 'squared', got 'l2'",
        lambda: criteria.taylor("l2"),
    ),
    ("`custom(fn)` must be a function of a tree to a tree, got 3", lambda: criteria.custom(3)),
    (
        "`with_gradients(tx)` must be a gradient transformation, got <function",
        lambda: jprune.with_gradients(optax.adam),
    ),
    (
        "`with_gradients(tx)` goes inside `MultiSteps`",
        lambda: jprune.with_gradients(optax.MultiSteps(optax.sgd(1.0), 2)),
    ),
    (
        "`project(projection)` got the factory `soft_threshold` itself; call it",
        lambda: jprune.project(projections.soft_threshold),
    ),
    ("`get_masks(opt_state)` found no pruner", lambda: jprune.get_masks(optax.adam(1.0).init(PARAMS))),
    (
        "`unstructured(batch_axis=...)`: axis 2 is out of range for 'a/kernel' with 2 axes",
        lambda: jprune.find_masks(PARAMS, 0.5, structure=structures.unstructured(batch_axis=2)),
    ),
    (
        "`find_masks(criterion=...)`: the scores of 'a/kernel' must be floating of shape (3, 4), got float32 of shape ()",
        lambda: jprune.find_masks(
            PARAMS,
            0.5,
            criterion=criteria.magnitude()._replace(
                score=lambda params, *_: jax.tree.map(jnp.sum, params)
            ),
        ),
    ),
    (
        "`apply_masks(params, masks)`: the mask of 'a/kernel' has shape (2,), which does not broadcast to the parameter's (3, 4)",
        lambda: jprune.apply_masks(PARAMS, wrong(jnp.ones(2, bool))),
    ),
    (
        "`apply_masks(params, masks)`: the mask of 'a/kernel' must be bool, got float32",
        lambda: jprune.apply_masks(PARAMS, wrong(jnp.ones((3, 4)))),
    ),
    (
        "`apply_masks(params, masks)`: the mask 'b' fits no parameter",
        lambda: jprune.apply_masks(PARAMS, {**MASKS, "b": jnp.ones(2, bool)}),
    ),
    (
        "`apply_masks(params, masks)`: the mask 'a' fits no parameter",
        lambda: jprune.apply_masks(PARAMS, {"a": True}),
    ),
    (
        "`apply_masks(params, masks)`: the mask '(root)' fits no parameter",
        lambda: jprune.apply_masks(PARAMS, np.array(True)),
    ),
    (
        "`straight_through(params, masks)`: the masks fit several branches of the parameters, 'one' and 'two'; give them with their whole paths",
        lambda: jprune.straight_through({"one": PARAMS, "two": PARAMS}, MASKS),
    ),
    (
        "`find_masks(grads=...)`: the parameters have the leaf 'a/kernel'",
        lambda: jprune.find_masks(PARAMS, 0.5, grads={"a": {"bias": jnp.ones(4)}}),
    ),
    (
        "`straight_through(params, masks)`: the mask of 'a/kernel' must be bool, got float32",
        lambda: jprune.straight_through(PARAMS, wrong(jnp.ones((3, 4)))),
    ),
    (
        "`straight_through(decay=...)` must be a number >= 0, got -1.0",
        lambda: jprune.straight_through(PARAMS, MASKS, decay=-1.0),
    ),
    (
        "`rewire(sparsity=...)` must be a number, got the schedule",
        lambda: jprune.rigl(optax.sgd(0.1), optax.constant_schedule(0.5), stop=9),
    ),
    (
        "`rewire(fraction=...)` must lie in [0, 1], got 1.5",
        lambda: jprune.rigl(optax.sgd(0.1), 0.5, fraction=1.5),
    ),
    (
        "`rewire(stop=...)` must be an integer >= 1, got None: the default `fraction`",
        lambda: jprune.rigl(optax.sgd(0.1), 0.5),
    ),
    (
        "`rewire(start=...)` must be an integer >= 0, got -1",
        lambda: jprune.rigl(optax.sgd(0.1), 0.5, start=-1, stop=9),
    ),
    (
        "`rewire(grow=...)` got the function `gradient` itself; call it",
        lambda: jprune.rewire(optax.sgd(0.1), 0.5, grow=criteria.gradient, stop=9),
    ),
    (
        "`rewire(drop=...)` must be of type `Criterion`, got 'smallest'",
        lambda: jprune.rigl(optax.sgd(0.1), 0.5, drop="smallest", stop=9),
    ),
    (
        "`rewire(inner)` must be a gradient transformation, got 0.1",
        lambda: jprune.rigl(0.1, 0.5, stop=9),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), WHEN_MADE)
def test_refused_when_made(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


IN_INIT: list[tuple[str, Callable[[], Any], Any]] = [
    (
        "`keep_masks(masks)`: the mask of 'a/kernel' has shape (4, 3)",
        lambda: jprune.keep_masks(wrong(jnp.ones((4, 3), bool))),
        PARAMS,
    ),
    (
        "`keep_masks(masks)`: the mask of 'a/kernel' must be bool, got uint8",
        lambda: jprune.keep_masks(wrong(jnp.ones((3, 4), jnp.uint8))),
        PARAMS,
    ),
    (
        "`keep_masks(masks)`: the mask 'b' fits no parameter",
        lambda: jprune.keep_masks({"b": jnp.ones(2, bool)}),
        PARAMS,
    ),
    (
        "`keep_masks(masks)`: the leaf 'a/kernel' must be a real floating array, got int32",
        lambda: jprune.keep_masks({"a": {"kernel": jnp.ones((3, 4), bool)}}),
        INTEGERS,
    ),
    (
        "`prune(where=...)`: the leaf 'a/kernel' must be a real floating array, got complex64",
        lambda: jprune.prune(0.5, where="kernel"),
        COMPLEX,
    ),
    (
        "`prune(where=...)`: the leaf 'a/kernel' must be a real floating array, got int32",
        lambda: jprune.prune(0.5, where=True),
        INTEGERS,
    ),
    (
        "`prune(where=...)` selects no parameter, got 'no_such'; the leaves are: a/bias, a/kernel",
        lambda: jprune.prune(0.5, where="no_such"),
        PARAMS,
    ),
    (
        "`prune(where=...)` selects no parameter, got None; the leaves are: 'bias' has fewer than two axes, 'c' is complex64, not floating, 'i' is int32, not floating, 'scale' is called 'scale'",
        lambda: jprune.prune(0.5),
        {
            "bias": jnp.ones(3),
            "c": COMPLEX["a"]["kernel"],
            "i": INTEGERS["a"]["kernel"],
            "scale": jnp.ones((2, 2)),
        },
    ),
    (
        "is called once, with the whole tree of parameters, and fails: AttributeError: 'dict' object has no attribute 'ndim'. A rule for leaves is `lambda params: jax.tree.map(lambda leaf: ..., params)`",
        lambda: jprune.prune(0.5, where=lambda leaf: leaf.ndim == 2),
        PARAMS,
    ),
    (
        "`prune(where=...)`: the leaf '0' must be True or False, got float32 of shape (3, 4)",
        lambda: jprune.prune(0.5, where=[PARAMS["a"]["kernel"]]),
        PARAMS,
    ),
    (
        "`prune(where=...)`: the leaf 'a/kernel' must be True or False, got 1",
        lambda: jprune.prune(0.5, where={"a": {"kernel": 1, "bias": False}}),
        PARAMS,
    ),
    (
        "`prune(where=...)`: the parameters have the leaf 'a/bias', the given tree has not",
        lambda: jprune.prune(0.5, where={"a": {"kernel": True}}),
        PARAMS,
    ),
    (
        "`prune(where=...)`: the given tree has the leaf 'b', the parameters have not",
        lambda: jprune.prune(0.5, where={"a": True, "b": False}),
        PARAMS,
    ),
    (
        "`unstructured(batch_axis=...)`: axis -3 is out of range for 'a/kernel'",
        lambda: jprune.prune(0.5, structure=structures.unstructured(batch_axis=-3)),
        PARAMS,
    ),
    (
        "`project(projection)` changed the shape of 'a/bias' from (4,) to ()",
        lambda: jprune.project(lambda tree: jax.tree.map(jnp.sum, tree)),
        PARAMS,
    ),
    (
        "`project(projection)` must return a tree like its argument",
        lambda: jprune.project(lambda tree: 0.0),
        PARAMS,
    ),
    (
        "`project_frobenius_ball(where=...)` selects no parameter",
        lambda: jprune.project_frobenius_ball(1.0),
        INTEGERS,
    ),
    (
        "`rewire(inner)`: no rule says which entries of the slot '0/base_optimizer_state/mu/a/kernel', of shape (3, 2), belong to which weight",
        lambda: jprune.rigl(optax.contrib.galore(0.1, rank=2), 0.5, stop=9),
        PARAMS,
    ),
    (
        "`rewire(inner)`: which weights the slots '0/mu', '0/nu' of the state belong to can't be told; their shapes change with those of the parameters, and their paths name none",
        lambda: jprune.rigl(optax.flatten(optax.adam(0.1)), 0.5, stop=9),
        PARAMS,
    ),
    (
        "`rewire(where=...)` selects no parameter",
        lambda: jprune.rigl(optax.sgd(0.1), 0.5, where="no_such", stop=9),
        PARAMS,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("message", "make", "params"), IN_INIT)
def test_refused_in_init(
    message: str, make: Callable[[], Any], params: Any
) -> None:
    tx = make()
    with pytest.raises(ValueError, match=re.escape(message)):
        tx.init(params)
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(tx.init, params)


def test_where_of_values_that_are_traced_is_refused() -> None:
    def find(params: Any) -> Any:
        large = jax.tree.map(lambda p: jnp.any(p > 2), params)
        return jprune.find_masks(params, 0.5, where=large)

    with pytest.raises(ValueError, match=r"'a/bias' must be.*got traced bool"):
        jax.jit(find)(PARAMS)


LOUD = {"w": jnp.full((3, 4), 123.456), "v": [jnp.full(3, 123.456)] * 50}
WITH_ARRAYS: dict[str, Callable[[], Any]] = {
    "sparsity": lambda: jprune.find_masks(LOUD, LOUD),
    "one array": lambda: jprune.prune(LOUD["w"]),
    "criterion": lambda: jprune.prune(0.5, criterion=LOUD),
    "structure": lambda: jprune.prune(0.5, structure=LOUD["w"]),
    "allocation": lambda: jprune.prune(0.5, allocation=(LOUD, LOUD)),
    "where": lambda: jprune.find_masks(LOUD, 0.5, where=LOUD),
    "where of arrays": lambda: jprune.find_masks(LOUD, 0.5, where=[LOUD["w"]]),
    "every": lambda: jprune.prune(0.5, every=LOUD),
    "masks": lambda: jprune.apply_masks(LOUD, LOUD),
    "tx": lambda: jprune.with_gradients(LOUD),
    "tx of check_chain": lambda: jprune.check_chain(LOUD, LOUD),
    "inner": lambda: jprune.rigl(LOUD, 0.5, stop=9),
    "projection": lambda: jprune.project(LOUD),
    "radius": lambda: jprune.project_frobenius_ball(LOUD),
    "per": lambda: jprune.project_frobenius_ball(1.0, per=[LOUD]),
    "k": lambda: selection.top_k_mask(LOUD["w"], LOUD),
    "loss": lambda: criteria.snip(LOUD, lambda p, b: 0.0, None),
    "custom": lambda: criteria.custom(LOUD),
    "size": lambda: structures.group(LOUD),
    "axis": lambda: structures.fan_in(in_axis=LOUD),
    "decay": lambda: jprune.straight_through(LOUD, None, decay=LOUD),
    "state": lambda: jprune.get_masks(optax.adam(0.1).init(LOUD)),
    "fn": lambda: jprune.compact(LOUD, LOUD),
    "graph": lambda: jprune.units(LOUD),
}


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_errors_print_no_arrays(name: str) -> None:
    with pytest.raises(ValueError, match="`") as error:
        WITH_ARRAYS[name]()
    assert "123.4" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "tx"),
    [
        ("keep_masks", jprune.keep_masks(MASKS)),
        ("prune", jprune.prune(0.5)),
        ("rewire", jprune.rigl(optax.sgd(0.1), 0.5, stop=9)),
        ("project", jprune.project(projections.frobenius_ball(1.0))),
        ("project_frobenius_ball", jprune.project_frobenius_ball(1.0)),
    ],
)
def test_update_without_params(name: str, tx: Any) -> None:
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=f"`{name}` needs the parameters"):
        tx.update(PARAMS, state)


NO_UPDATE = {"a": {"kernel": None, "bias": jnp.ones(4)}}
UPDATED: dict[str, tuple[Any, str]] = {
    "keep_masks": (jprune.keep_masks(MASKS), "keep_masks(masks=...)"),
    "prune": (jprune.prune(0.5), "prune(where=...)"),
    "rewire": (
        jprune.rigl(optax.sgd(0.1), 0.5, stop=9),
        "must be floating of shape (3, 4), got NoneType",
    ),
    "project": (
        jprune.project(projections.soft_threshold(0.1), every=2),
        "project(where=...)",
    ),
    "project_frobenius_ball": (
        jprune.project_frobenius_ball(1.0),
        "project_frobenius_ball(where=...)",
    ),
}


@pytest.mark.parametrize("name", UPDATED)
def test_no_update_of_a_selected_leaf(name: str) -> None:
    """What is masked would not be 0; a leaf that is excluded needs no update."""
    tx, how = UPDATED[name]
    state = tx.init(PARAMS)
    message = rf"^`{name}`.*'a/kernel'.*{re.escape(how)}"
    with pytest.raises(ValueError, match=message):
        tx.update(NO_UPDATE, state, PARAMS)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tx.update, NO_UPDATE, state, PARAMS)


def test_no_update_of_a_leaf_that_is_left_out() -> None:
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4))}
    tx = jprune.prune(0.5, where="a")
    moved, _ = tx.update({"a": params["a"], "b": None}, tx.init(params), params)
    assert moved["b"] is None


def prune_by(**how: Any) -> Any:
    return jprune.prune(0.5, **how)


def rewire_by(drop: Any) -> Any:
    return jprune.rigl(optax.sgd(0.1), 0.5, stop=9, drop=drop)


BIASES_TOO = {"a": {"kernel": True, "bias": True}}
RESTORED: list[tuple[str, Any, Any]] = [
    (
        "`prune`: the state must be that of this criterion",
        prune_by(),
        prune_by(criterion=criteria.fisher()),
    ),
    (
        "`prune`: the state must be that of this criterion",
        prune_by(criterion=criteria.fisher()),
        prune_by(),
    ),
    (
        "`rewire`: the state must be that of this criterion",
        rewire_by(criteria.magnitude()),
        rewire_by(criteria.movement()),
    ),
    (
        "`prune`: the mask of 'a/bias' in the state is not one of this transform",
        prune_by(where=BIASES_TOO),
        prune_by(),
    ),
    (
        "`prune`: the mask of 'a/bias' in the state is not one of this transform",
        prune_by(),
        prune_by(where=BIASES_TOO),
    ),
]


@pytest.mark.parametrize(("message", "saved", "now"), RESTORED)
def test_a_state_of_another_transform(
    message: str, saved: Any, now: Any
) -> None:
    state = saved.init(PARAMS)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        jax.eval_shape(lambda: now.update(PARAMS, state, PARAMS, grad=PARAMS))


def test_a_state_of_other_shapes() -> None:
    other = {"a": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}}
    tx = prune_by(criterion=criteria.fisher())
    with pytest.raises(ValueError, match="mask of 'a/kernel' in the state"):
        tx.update(PARAMS, tx.init(other), PARAMS, grad=PARAMS)
    state = tx.init(PARAMS)
    half = jax.tree.map(lambda x: x.astype(jnp.float16), state.criterion)
    message = "'a/kernel' is float32 of shape .3, 4., got float16"
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, state._replace(criterion=half), PARAMS, grad=PARAMS)


def test_traced_numbers_pass() -> None:
    @jax.jit
    def step(sparsity: Any, radius: Any, k: Any) -> Any:
        tx = optax.chain(
            jprune.prune(sparsity), jprune.project_frobenius_ball(radius)
        )
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        return updates, selection.top_k_mask(jnp.arange(3.0), k)

    # No message: such a sparsity changes nothing, `k` is clipped.
    _, mask = step(7.0, 1.0, 9)
    assert mask.all()


def units_of(round_to: Any) -> Any:
    graph = jprune.trace_units(
        lambda p, x: x @ p["a"] @ p["b"],
        {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 2))},
        jnp.ones((1, 2)),
    )
    return jprune.units(graph, round_to=round_to)


INTEGERS_OF: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "`prune(every=...)`": (lambda n: jprune.prune(0.5, every=n), True),
    "`l0_ball(max_nonzero)`": (projections.l0_ball, True),
    "`top_k_mask(scores, k)`: k": (
        lambda n: selection.top_k_mask(jnp.ones(4), n),
        True,
    ),
    "`group(size)`": (structures.group, False),
    "`block(shape)`": (lambda n: structures.block((n, n)), False),
    "`n_m(n)`": (lambda n: structures.n_m(n, 4), False),
    "`units(round_to=...)`": (units_of, False),
}


@pytest.mark.parametrize("place", INTEGERS_OF)
def test_integers_follow_one_rule(place: str) -> None:
    """Of any type that is whole; traced ones where nothing static hangs on them."""
    make, may_be_traced = INTEGERS_OF[place]
    for whole in (2, 2.0, np.int64(2), jnp.int32(2)):
        make(whole)
    for wrong in (1.5, -1, np.nan, np.inf):
        message = re.escape(place) + " must be an integer .*, got"
        with pytest.raises(ValueError, match=message):
            make(wrong)
    for no_number in (True, "2", None, np.ones(2)):
        with pytest.raises(ValueError, match=re.escape(f"{place} must be")):
            make(no_number)

    def traced(number: Any) -> jax.Array:
        if may_be_traced:
            make(number)
        else:
            with pytest.raises(ValueError, match="got traced int32"):
                make(number)
        return number

    jax.jit(traced)(2)


def test_the_masks_of_the_user_stay() -> None:
    mask = jnp.array([[True, False]])
    tx = jprune.keep_masks({"kernel": mask})
    state = tx.init({"kernel": jnp.ones((2, 2))})
    assert state.masks["kernel"].shape == (2, 2)  # broadcast, a copy
    jax.tree.map(lambda m: m.delete(), state)
    assert not mask.is_deleted()
