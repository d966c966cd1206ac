"""`compress`: what it promises, what it returns, and what it refuses."""

import importlib
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune
from jprune import criteria, search, structures
from jprune.search import judge
from jprune.search.promise import promise


def numbers(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def mlp(params, x):
    return (
        jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"] + params["c"]
    )


def right(logits, x, y):
    return logits.argmax(-1) == y


# Four of ten units do all the work, and two do a little.
STRENGTH = jnp.array([1, 0, 1, 0, 1e-3, 1, 0, 1e-3, 1, 0])[:, None]
PARAMS = {
    "w": numbers(4, 10),
    "b": numbers(10, seed=1),
    "v": numbers(10, 3, seed=2) * STRENGTH,
    "c": numbers(3, seed=5) / 10,
}
X, OTHER = numbers(256, 4, seed=3), numbers(600, 4, seed=4)
Y = mlp(PARAMS, OTHER).argmax(-1)
HELD = [(OTHER[:300], Y[:300]), (OTHER[300:], Y[300:])]


def compress(**given):
    options: dict[str, Any] = {
        "holdout": HELD,
        "score": right,
        "inputs": 1,
        "budgets": (0.7, 0.4, 0.2),
    } | given
    fn, params = options.pop("fn", mlp), options.pop("params", PARAMS)
    batches = options.pop("batches", [(X,)])
    return jprune.compress(fn, params, batches, **options)


@pytest.fixture(scope="module")
def result():
    return compress()


def test_the_smallest_model_that_keeps_the_promise(result):
    assert result.promise.kept
    assert result.promise.bound <= 0.01
    assert result.point is result.front[-2]
    assert [point.promise.kept for point in result.front] == [True, True, False]
    assert result.small.params["w"].shape == (4, 4)
    assert result.point.fit.left["multiply_adds"] == 0.4
    left = [point.fit.left["multiply_adds"] for point in result.front]
    assert left == sorted(left, reverse=True)


def test_all_that_it_returns_is_one_model(result):
    small = result.small
    dense = mlp(result.params, OTHER)
    np.testing.assert_allclose(small.fn(small.params, OTHER), dense, atol=1e-5)
    assert small.certify(OTHER).error < 1e-4
    masked = jprune.apply_masks(result.params, result.masks)
    jax.tree.map(np.testing.assert_array_equal, masked, result.params)
    scores = np.concatenate(
        [right(mlp(result.params, x), x, y) for x, y in HELD]
    )
    assert result.promise.small == pytest.approx(scores.mean())
    assert result.promise.dense == 1.0
    assert result.promise.samples == 600


def test_it_prints_in_words(result):
    words = str(result)
    assert "40.0 % of the multiply-adds" in words
    assert "On 600 samples that no search has seen" in words
    assert "the promise of 1 is kept" in words
    assert "It stopped at 20.0 % of the multiply-adds" in words
    table = str(result.front).splitlines()
    assert len(table) == 5
    assert table[-1].endswith("no")


def test_the_same_seed_gives_the_same_result(result):
    again = compress(budgets=(0.7, 0.4))
    jax.tree.map(
        np.testing.assert_array_equal, again.small.params, result.small.params
    )
    assert again.promise == result.promise
    assert again.stopped == "All budgets were tried."


def test_nothing_is_lost_where_nothing_can_be_promised():
    sensitive = PARAMS | {"v": numbers(10, 3, seed=2)}
    y = mlp(sensitive, OTHER).argmax(-1)
    result = compress(
        params=sensitive, holdout=[(OTHER, y)], budgets=(0.3, 0.2)
    )
    assert result.point is None
    assert not result.promise.kept
    assert len(result.front) == 1
    jax.tree.map(np.testing.assert_array_equal, result.params, sensitive)
    np.testing.assert_allclose(
        result.small.fn(result.small.params, OTHER),
        mlp(sensitive, OTHER),
        rtol=1e-5,
    )
    assert all(bool(x.all()) for x in jax.tree.leaves(result.masks))
    assert "Nothing was removed" in str(result)
    assert "can be promised, and 1 were asked for" in str(result)


def test_a_finetune_gets_the_smaller_model_and_is_judged():
    seen = []

    def finetune(fn, params, masks):
        seen.append((jax.tree.map(jnp.shape, params), masks))
        fn(params, X)
        return params | {name: 2 * params[name] for name in "vc"}

    result = compress(finetune=finetune, budgets=(0.4,))
    assert seen == [({"b": (4,), "c": (3,), "v": (4, 3), "w": (4, 4)}, None)]
    plain = compress(budgets=(0.4,))
    for name, times in (("w", 1), ("v", 2), ("c", 2)):
        np.testing.assert_allclose(
            result.small.params[name],
            times * plain.small.params[name],
            rtol=1e-6,
        )
    assert result.small.certify(OTHER).error < 1e-4


@pytest.mark.slow
def test_distilled_on_what_the_dense_model_says():
    finetune = jprune.distill(mlp, PARAMS, [X], optax.adam(1e-2), 30)
    plain = compress(budgets=(0.2,), tolerance=0.5)
    tuned = compress(budgets=(0.2,), tolerance=0.5, finetune=finetune)
    assert tuned.small.params["w"].shape == plain.small.params["w"].shape
    assert tuned.promise.small > plain.promise.small


@pytest.mark.slow
def test_weights_go_and_stay_away():
    finetune = jprune.distill(mlp, PARAMS, [X], optax.adamw(1e-2), 10)
    result = compress(
        structure=structures.unstructured(),
        criterion=criteria.magnitude(),
        finetune=finetune,
        tolerance=0.3,
        budgets=(0.6,),
        by="parameters",
    )
    kept = sum(int(m.sum()) for m in (result.masks["w"], result.masks["v"]))
    assert (kept + 13) / 83 == result.point.fit.left["parameters"] <= 0.6
    for name in ("w", "v"):
        assert not np.asarray(result.params[name])[~result.masks[name]].any()


@pytest.mark.slow
def test_where_says_which_leaves_are_pruned():
    """Whole inputs of the first layer, two of which are noise."""
    params = PARAMS | {"w": PARAMS["w"].at[2:].multiply(1e-3)}
    held = [(OTHER, mlp(params, OTHER).argmax(-1))]
    result = compress(
        params=params,
        holdout=held,
        structure=structures.channel(0),
        where="^w$",
        by="parameters",
        budgets=(0.8, 0.6),
    )
    assert result.curves.names == ("w",)
    assert result.masks["w"].any(1).tolist() == [True, True, False, False]
    assert jax.tree.leaves(result.masks) == [result.masks["w"]]
    with pytest.raises(ValueError, match=r"compress.*where|sensitivity.*where"):
        compress(structure=structures.channel(0), where="nothing")


@pytest.mark.slow
def test_the_fastest_of_those_that_keep_the_promise():
    """Timed beside the dense model; the smallest is not the fastest here."""
    calls = []

    def timer(fn, params, *args):
        units = params["b"].shape[0]
        fn(params, *args)
        calls.append(units)
        return {16: 4.0, 8: 2.0}[units]

    wide = {
        "w": numbers(4, 16),
        "b": numbers(16, seed=1),
        "v": numbers(16, 3, seed=2).at[5:].set(0.0),
        "c": PARAMS["c"],
    }
    y = mlp(wide, OTHER).argmax(-1)
    result = compress(
        params=wide, holdout=[(OTHER, y)], by=timer, budgets=(0.9, 0.6)
    )
    assert result.small.params["b"].shape == (8,)  # a multiple of 8
    assert calls == [16, 8]
    assert result.point.seconds == 2.0
    assert result.point.dense_seconds == 4.0
    assert result.point.times == 2.0
    assert list(result.speed) == ["dense", "small"]
    assert "times as fast as the dense model" in str(result)
    assert "2000.000 ms" in str(result.front)


def test_what_failed_was_not_timed_and_prints():
    dense = np.arange(300) < 270
    options: dict[str, Any] = {"tolerance": 0.1, "confidence": 0.9}
    one, units, half = (np.array([n]) for n in (1, 8, 4))
    left = {"parameters": 0.5}
    fit = search.Fit(("a",), one, units, half, {}, left, 0.0)
    kept = promise(dense, dense, **options)
    lost = promise(dense, np.zeros(300, bool), **options)
    front = search.Front(
        (search.Point(0.5, fit, kept, 2.0, 4.0), search.Point(0.2, fit, lost))
    )
    last = str(front).splitlines()[-1].split()
    assert last[-3:] == ["-", "-", "no"]


def test_what_is_slower_than_the_dense_model_is_not_taken():
    result = compress(by=lambda fn, params, *args: 1.0, budgets=(0.8,))
    assert result.point is None
    assert result.front[0].promise.kept


@pytest.mark.slow
def test_numbers_in_place_of_outcomes():
    """Regression: how close an output is, from 0 to 1."""

    def close(outputs, x, y):
        return jnp.exp(-((outputs - y) ** 2).sum(-1))

    fn, head = mlp, PARAMS | {"v": PARAMS["v"][:, :1], "c": PARAMS["c"][:1]}
    x, y = OTHER, fn(head, OTHER)
    result = compress(
        params=head,
        holdout=[(x, y)],
        score=close,
        tolerance=0.02,
        budgets=(0.4,),
    )
    assert result.promise.kept
    assert result.small.params["b"].shape == (4,)


def test_the_group_that_loses_most():
    result = compress(
        groups=lambda x, y: np.where(x[:, 0] > 0, "plus", "minus"),
        budgets=(0.4, 0.2),
    )
    worst = result.front[-1].promise.worst
    assert worst.group in ("plus", "minus")
    assert worst.samples < 600
    assert worst.loss >= result.front[-1].promise.loss
    assert worst.bound > worst.loss
    assert "worst group" in str(result.front)
    assert "The group that loses most is" in str(result)


class Norms(nn.Module):
    """Convolutions with statistics that no gradient trains."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.slow
def test_linen_with_statistics():
    module = Norms()
    x = numbers(64, 6, 6, 1)
    variables = module.init(jax.random.key(0), x)
    kernel = variables["params"]["Dense_0"]["kernel"]
    variables["params"]["Dense_0"]["kernel"] = kernel.at[4:].set(0.0)
    held = numbers(400, 6, 6, 1, seed=1)
    outputs: Any = module.apply(variables, held)
    y = outputs.argmax(-1)
    finetune = jprune.distill(
        module.apply, variables, [x], optax.adam(1e-4), 2, train=False
    )
    result = compress(
        fn=module.apply,
        params=variables,
        batches=[(x,)],
        holdout=[(held, y)],
        budgets=(0.5,),
        finetune=finetune,
        train=False,
    )
    stats = result.small.params["batch_stats"]["BatchNorm_0"]
    assert stats["mean"].shape == (4,)
    assert float(stats["var"].min()) > 0
    assert result.promise.kept


def masked(params, batch):
    return mlp(params, batch["x"]) * batch["mask"][:, :1]


def test_what_batches_share_is_no_sample(tmp_path):
    # A constant comes first in the dict, and is the same where samples differ.
    mask = jnp.ones((300, 1))

    def batch(x, y):
        return {"a key": jax.random.key(0), "mask": mask, "x": x}, y

    options: dict[str, Any] = {
        "fn": lambda params, b: masked(params, b),
        "holdout": [batch(OTHER[:300], Y[:300])],
        "budgets": (0.7,),
    }
    with pytest.raises(ValueError, match="holdout batch 0 is batch 0 of those"):
        compress(batches=[batch(OTHER[:300], Y[:300])[:1]], **options)
    shared = [({"a key": jax.random.key(0), "mask": mask[:256], "x": X},)]
    judge.check_apart(shared, options["holdout"], 1)


def test_integers_are_outcomes():
    def ones(logits, x, y):
        return (logits.argmax(-1) == y).astype(int)

    args = HELD, 1, ones, None
    assert judge.Judge(*args).scores(mlp, PARAMS).dtype == bool
    args = HELD, 1, lambda *a: 2 * ones(*a), None
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got 2"):
        judge.Judge(*args).scores(mlp, PARAMS)


def test_a_first_batch_of_another_shape_does_not_drop_the_rest():
    parts = [(X[:8],), (X[8:72],), (X[72:136],), (X[136:140],)]
    module = importlib.import_module("jprune.search.compress")
    found = module._alike(parts)
    assert [len(x) for (x,) in found] == [64, 64]


def test_groups_may_be_words_of_any_type():
    dense = np.arange(100) < 90
    for kind in (object, str):
        names = np.array(["a", "bb"] * 50, kind)
        found = promise(
            dense, dense, tolerance=0.1, confidence=0.9, groups=names
        )
        assert found.worst is not None
        assert found.worst.group == "a"


# In any framework ------------------------------------------------------------


def of_nnx():
    """A module's state, of which half of the units do nothing."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 8, rngs=rngs)
            self.last = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    net = Net(nnx.Rngs(0))
    net.last.kernel[...] = net.last.kernel[...].at[4:].set(0.0)
    net.last.bias = nnx.Param(PARAMS["c"])  # else outputs may be equal
    graphdef, state = nnx.split(net)
    return lambda state, x: nnx.merge(graphdef, state)(x), state


def of_equinox():
    net = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    last = net.layers[-1].weight.at[:, 4:].set(0.0)
    net = eqx.tree_at(lambda net: net.layers[-1].weight, net, last)
    params, rest = eqx.partition(net, eqx.is_array)
    return lambda p, x: jax.vmap(eqx.combine(p, rest))(x), params


def of_scan():
    """Residual blocks in a stack, all as wide as each other."""

    def fn(params, x):
        def block(x, layer):
            return x + jax.nn.relu(x @ layer["w"]) @ layer["v"], None

        return jax.lax.scan(block, x, params["blocks"])[0][:, :3] * 1.0

    blocks = {
        "w": numbers(3, 4, 8),
        "v": numbers(3, 8, 4, seed=1).at[:, 4:].set(0.0) / 4,
    }
    return fn, {"blocks": blocks}


def of_mesh():
    """Parameters that eight devices share."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    fn, half = mlp, {**PARAMS, "v": PARAMS["v"].at[5:].set(0.0)}
    specs = {"w": (None, "d"), "b": ("d",), "v": ("d", None), "c": ()}
    return fn, {
        name: jax.device_put(
            x, NamedSharding(mesh, PartitionSpec(*specs[name]))
        )
        for name, x in half.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("make", [of_nnx, of_equinox, of_scan, of_mesh])
def test_any_model(make):
    fn, params = make()
    y = fn(params, OTHER).argmax(-1)
    finetune = jprune.distill(fn, params, [X], optax.adam(1e-5), 2)
    for tuned in (None, finetune):
        result = compress(
            fn=fn,
            params=params,
            holdout=[(OTHER, y)],
            budgets=(0.65,),
            finetune=tuned,
        )
        assert result.promise.kept
        small = result.small
        assert sum(x.size for x in jax.tree.leaves(small.params)) < 0.7 * sum(
            x.size for x in jax.tree.leaves(params)
        )
        np.testing.assert_allclose(
            small.fn(small.params, OTHER), fn(result.params, OTHER), atol=1e-4
        )


# Killed, and called again ----------------------------------------------------


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed(tmp_path):
    calls: list[int] = []

    def finetune(fn, params, masks):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return params

    options = {"finetune": finetune, "resume": tmp_path, "budgets": (0.7, 0.4)}
    with pytest.raises(KeyboardInterrupt):
        compress(**options)
    assert len(calls) == 1
    calls.append(1)
    result = compress(**options)
    assert len(calls) == 3  # the second model alone
    again = compress(**options)
    assert len(calls) == 3
    plain = compress(
        budgets=(0.7, 0.4), finetune=lambda fn, params, masks: params
    )
    for other in (again, plain):
        assert str(other.front) == str(result.front)
        assert other.stopped == result.stopped
        jax.tree.map(
            np.testing.assert_array_equal,
            other.small.params,
            result.small.params,
        )
    with pytest.raises(ValueError, match="holds another search"):
        compress(**options | {"tolerance": 0.02})
    for other in (
        {"samples": 100},
        {"budgets": (0.7, 0.3)},
        {"finetune": None},
        {"distance": jprune.search.squared_error},
    ):
        with pytest.raises(ValueError, match="holds another search"):
            compress(**options | other)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(ValueError, match="none of a search"):
        compress(**options)


# Refused ---------------------------------------------------------------------


def nan(logits, x, y):
    return jnp.where(y == 0, jnp.nan, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"holdout": [(OTHER[:200], Y[:200])]},
            "at least 268 samples, even if nothing is lost, and there are 200",
        ),
        (
            {"score": lambda logits, x, y: right(logits, x, y).mean()},
            r"\[300\], got",
        ),
        ({"score": lambda logits, x, y: 2.0 * y}, r"lie in \[0, 1\], got 2"),
        ({"score": nan}, "got nan for sample"),
        ({"score": "accuracy"}, "score.* must be a function"),
        ({"batches": [(OTHER[:300],)]}, "holdout batch 0 is batch 0 of those"),
        ({"tolerance": 1.0}, "tolerance.* between 0 and 1, got 1"),
        ({"confidence": 95}, "confidence.* between 0 and 1, got 95"),
        ({"batches": []}, r"compress\(batches\)` is empty"),
        ({"holdout": []}, r"holdout=\.\.\.\)` is empty"),
        ({"batches": X}, "must be an iterable of batches"),
        ({"inputs": 3}, "between 1 and the 1 entries"),
        ({"by": "flops"}, "must be one of 'parameters', 'multiply_adds'"),
        (
            {"finetune": lambda fn, params, masks: PARAMS},
            r"'b' has shape \(10,\), and had",
        ),
        ({"finetune": lambda fn, params, masks: 1.0}, "parameters like those"),
        ({"groups": lambda x, y: [1]}, "the group of each sample"),
        ({"budgets": (0.001,)}, "the least that can be reached"),
        ({"budgets": ()}, r"fractions in \(0, 1\] that fall"),
        ({"budgets": 0.5}, "that fall, as in .*, got 0.5"),
        ({"budgets": (0.2, 0.4)}, r"that fall, as in .*, got \(0.2, 0.4\)"),
        ({"budgets": (0.5, 0)}, "that fall"),
        ({"inputs": 1.5}, "inputs.* must be an integer"),
        ({"seed": jax.random.key(0)}, "seed.* must be"),
        ({"holdout": (OTHER, Y)}, r"tuple of 2 arrays: .*`\[\(x, y\)\]`"),
        ({"batches": (X, Y)}, "batches.* is a tuple of 2 arrays"),
        ({"batches": [X, Y]}, "does not take batch 1"),
    ],
)
def test_bad_input_says_what_to_do(options, words):
    with pytest.raises(ValueError, match=words):
        compress(**options)


def test_nothing_to_prune():
    with pytest.raises(ValueError, match="nothing can be removed"):
        compress(fn=lambda p, x: x @ p, params=PARAMS["w"][:, :3])


def test_arguments_are_told_from_labels_or_asked_for():
    def guess(fn, params=PARAMS, **options):
        return compress(
            fn=fn,
            params=params,
            batches=[(X, mlp(PARAMS, X).argmax(-1))],
            inputs=None,
            budgets=(0.7,),
            **options,
        )

    assert guess(mlp).promise.kept
    with pytest.raises(ValueError, match="the first 1 or 2 entries"):
        guess(lambda p, x, mask=None: mlp(p, x))
    with pytest.raises(ValueError, match="none of the first entries"):
        guess(lambda p: p)
