"""Every structure under every allocation, against sorts in NumPy."""

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import allocations, criteria, structures

SHAPES = {"conv": (3, 2, 4, 6), "dense": (8, 5)}
SIGNED = criteria.magnitude()._replace(score=lambda params, *_: params)


def boxes(*tile: int) -> Callable[[tuple[int, ...]], Any]:
    """Pool and unit of each weight, numbered, where units are boxes."""

    def label(shape: tuple[int, ...]) -> Any:
        sizes = (1,) * (len(shape) - len(tile)) + tile
        places = [i // t for i, t in zip(np.indices(shape), sizes, strict=True)]
        counts = [p.max() + 1 for p in places]
        return np.zeros(shape, int), np.ravel_multi_index(places, counts)

    return label


def outputs(shape: tuple[int, ...]) -> Any:
    place = np.indices(shape)
    return place[-1], np.ravel_multi_index(tuple(place[:-1]), shape[:-1])


def patterns(m: int) -> Callable[[tuple[int, ...]], Any]:
    def label(shape: tuple[int, ...]) -> Any:
        place = np.indices(shape)
        inner = place[-2]
        others = [*place[:-2], inner // m, place[-1]]
        return np.ravel_multi_index(others, shape), inner % m

    return label


def slices(axis: int) -> Callable[[tuple[int, ...]], Any]:
    return lambda shape: (np.zeros(shape, int), np.indices(shape)[axis])


LAST: Any = {"in_axis": -2, "out_axis": -1}
STRUCTURES: dict[str, tuple[jprune.structures.Structure, Any]] = {
    "unstructured": (structures.unstructured(), boxes(1, 1)),
    "fan_in": (structures.fan_in(**LAST), outputs),
    "group": (structures.group(2, **LAST), boxes(1, 2)),
    "group_ragged": (structures.group(4, pooling="l1", **LAST), boxes(1, 4)),
    "block": (structures.block((2, 3), **LAST), boxes(2, 3)),
    "block_ragged": (
        structures.block((3, 4), pooling="mean", **LAST),
        boxes(3, 4),
    ),
    "n_m": (structures.n_m(2, 4, **LAST), patterns(4)),
    "n_m_low": (structures.n_m(0, 2, **LAST), patterns(2)),
    "channel": (structures.channel(), slices(-1)),
    "channel_in": (structures.channel(-2, pooling="max"), slices(-2)),
}
ALIKE = ("fan_in", "n_m", "n_m_low")
POOLED = {"group_ragged": "l1", "block_ragged": "mean", "channel_in": "max"}
ALLOCATIONS = {
    "uniform": allocations.uniform(),
    "erdos_renyi": allocations.erdos_renyi(),
    "global": allocations.global_ranking(),
    "floor": allocations.global_ranking(min_density=0.3),
}
COMBINATIONS = [
    (s, a) for s in STRUCTURES for a in ALLOCATIONS
    if s not in ALIKE or a in ("uniform", "erdos_renyi")
]  # fmt: skip
QUICK = {
    ("fan_in", "erdos_renyi"),
    ("group_ragged", "erdos_renyi"),
    ("block_ragged", "global"),
    ("n_m", "uniform"),
    ("channel_in", "floor"),
}
GRADUAL = {("fan_in", "uniform"), ("n_m_low", "uniform")}


def mark(combinations: list[Any], quick: set[Any]) -> list[Any]:
    return [
        pytest.param(*c, marks=[] if c in quick else pytest.mark.slow)
        for c in combinations
    ]


def densities(units: dict[str, int], sparsity: float) -> dict[str, float]:
    """The published loop: what would pass 1 becomes dense, repeat."""
    raw = {k: sum(SHAPES[k]) / math.prod(SHAPES[k]) for k in units}
    dense: set[str] = set()
    while True:
        left = (1 - sparsity) * sum(units.values())
        left -= sum(units[k] for k in dense)
        rest = [k for k in units if k not in dense]
        weight = sum(raw[k] * units[k] for k in rest)
        found = {k: 1.0 if k in dense else left / weight * raw[k] for k in raw}
        full = {k for k in rest if found[k] > 1}
        if not full:
            return found
        dense |= full


class Units:
    """Scores of units in NumPy: ``[pools, units]`` of each leaf."""

    def __init__(self, name: str, leaf: str, scores: Any, kept: Any) -> None:
        self.pool, self.unit = STRUCTURES[name][1](SHAPES[leaf])
        pools, units = self.pool.max() + 1, self.unit.max() + 1
        self.scores = np.zeros((pools, units))
        self.kept = np.zeros((pools, units), bool)
        pooling: Any = {
            "l2": lambda x: (x**2).sum(),  # in the same order as the norm
            "l1": lambda x: abs(x).sum(),
            "mean": np.mean,
            "max": np.max,
            "none": np.sum,
        }[
            POOLED.get(
                name, "none" if name in (*ALIKE, "unstructured") else "l2"
            )
        ]
        names = np.unique(self.pool)
        self.scores, self.kept = self.scores[names], self.kept[names]
        self.pool = np.searchsorted(names, self.pool)
        for p in range(len(names)):
            for u in range(units):
                here = (self.pool == p) & (self.unit == u)
                self.scores[p, u] = np.float32(pooling(scores[here]))
                self.kept[p, u] = kept[here].any()

    def ranked(self, first: Any = 0) -> list[tuple[Any, ...]]:
        """Pools' units, best first: kept, first, score, place."""
        first = np.broadcast_to(first, self.kept.shape)
        return [
            (not self.kept[i], -first[i], -self.scores[i], *i)
            for i in np.ndindex(self.kept.shape)
        ]

    def mask(self, marked: Any) -> np.ndarray:
        return marked[self.pool, self.unit]


def oracle(
    name: str, allocation: str, params: Any, sixty: int, kept: Any
) -> Any:
    sparsity = sixty / 64
    leaves = {k: Units(name, k, params[k], kept[k]) for k in SHAPES}
    sizes = {k: u.scores.shape[1] for k, u in leaves.items()}
    numbers = {k: u.scores.shape[0] for k, u in leaves.items()}
    units = {k: sizes[k] * numbers[k] for k in SHAPES}
    marks = {k: np.zeros(u.kept.shape, bool) for k, u in leaves.items()}
    total = sum(units.values()) - round(sparsity * sum(units.values()))
    rates = dict.fromkeys(SHAPES, 1 - sparsity)
    if allocation == "erdos_renyi":
        rates = densities(units, sparsity)
    if allocation in ("global", "floor"):
        ranks = []
        for k, u in leaves.items():
            first = np.zeros(u.kept.shape)
            if allocation == "floor":
                least = -(-3 * sizes[k] // 10)
                for *_, p, i in sorted(u.ranked())[:least]:
                    first[p, i] = 1
            ranks += [(*r[:3], k, *r[3:]) for r in u.ranked(first)]
        if allocation == "floor":
            total = max(total, sum(-(-3 * n // 10) for n in sizes.values()))
        for *_, k, p, i in sorted(ranks)[:total]:
            marks[k][p, i] = True
        return {k: u.mask(marks[k]) for k, u in leaves.items()}
    if name.startswith("n_m"):
        least = 2 if name == "n_m" else 0
        counts = {k: max(least, round(sizes[k] * rates[k])) for k in SHAPES}
    elif allocation == "uniform" or name == "fan_in":
        counts = {k: n - round((1 - rates[k]) * n) for k, n in sizes.items()}
    else:
        # The i-th unit of a leaf when its quota has crossed i - 1/2.
        raw = {k: sum(SHAPES[k]) / np.prod(SHAPES[k]) for k in SHAPES}
        order = sorted(
            (round((i - 0.5) / (raw[k] * n), 9), k)
            for k, n in sizes.items()
            for i in range(1, n + 1)
        )
        counts = Counter(k for _, k in order[:total])
    for k, u in leaves.items():
        for p in range(numbers[k]):
            ranks = [r for r in u.ranked() if r[3] == p]
            for *_, i in sorted(ranks)[: counts[k]]:
                marks[k][p, i] = True
    return {k: u.mask(marks[k]) for k, u in leaves.items()}


JITTED: dict[Any, Any] = {}


def find(name: str, allocation: str, params: Any, sixty: int, kept: Any) -> Any:
    """Jitted with a traced sparsity, once for each combination."""
    if (name, allocation) not in JITTED:
        JITTED[name, allocation] = jax.jit(
            lambda params, sparsity, masks: jprune.find_masks(
                params,
                sparsity,
                criterion=SIGNED,
                structure=STRUCTURES[name][0],
                allocation=ALLOCATIONS[allocation],
                masks=masks,
            )
        )
    found = JITTED[name, allocation](params, np.float32(sixty / 64), kept)
    return jax.tree.map(np.asarray, found)


FULL = {k: np.ones(s, bool) for k, s in SHAPES.items()}


def draw(seed: int) -> Any:
    """Small integers of both signs: many ties, and sums are exact."""
    rng = np.random.default_rng(seed)
    return {
        k: rng.integers(-6, 7, s).astype(np.float32) for k, s in SHAPES.items()
    }


def test_every_structure_has_a_row() -> None:
    assert {n for n in structures.__all__ if n.islower()} <= STRUCTURES.keys()


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("name", "allocation"), mark(COMBINATIONS, QUICK))
@hypothesis.settings(deadline=None, max_examples=6, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 10**6), low=st.integers(0, 64), high=st.integers(0, 64)
)
def test_as_a_sort(
    name: str, allocation: str, seed: int, low: int, high: int
) -> None:
    """Chosen once, and again at another sparsity from other weights."""
    first = find(name, allocation, draw(seed), low, FULL)
    wanted = oracle(name, allocation, draw(seed), low, FULL)
    jax.tree.map(np.testing.assert_array_equal, first, wanted)
    other = draw(seed + 1)
    second = find(name, allocation, other, high, first)
    wanted = oracle(name, allocation, other, high, first)
    jax.tree.map(np.testing.assert_array_equal, second, wanted)
    for k in SHAPES if high >= low else ():
        assert not (second[k] & ~first[k]).any()  # pruned stays pruned
    for k in SHAPES if high <= low else ():
        assert not (first[k] & ~second[k]).any()


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("name", "allocation"), mark(COMBINATIONS, GRADUAL))
def test_gradually(name: str, allocation: str) -> None:
    """``prune`` at every step holds what ``find_masks`` would from there."""
    structure, rule = STRUCTURES[name][0], ALLOCATIONS[allocation]
    schedule = optax.polynomial_schedule(0.0, 0.75, 3, 3, 0)
    tx = jprune.prune(schedule, structure=structure, allocation=rule)
    params = jax.tree.map(jnp.asarray, draw(3))
    state, step = tx.init(params), jax.jit(tx.update)
    masks: Any = FULL
    for i in range(4):
        moved = jax.tree.map(lambda p, i=i: jnp.roll(p, i) + 0.5 * p, params)
        updates, state = step(moved, state, params)
        params = optax.apply_updates(params, updates)
        new = jax.tree.map(np.asarray, state.masks)
        for k in SHAPES:
            assert not (new[k] & ~masks[k]).any()
            assert not np.asarray(params[k])[~new[k]].any()
        masks = new
    final = find(name, allocation, draw(0), 48, FULL)  # as many are kept
    for k, u in ((k, Units(name, k, masks[k], masks[k])) for k in SHAPES):
        assert (u.mask(u.kept) == masks[k]).all()  # units are whole
        if allocation in ("uniform", "erdos_renyi"):
            counts = Units(name, k, draw(0)[k], final[k]).kept
            assert (u.kept.sum(1) == counts.sum(1)).all()


def test_n_m_of_jax_pruner() -> None:
    """Its mask_calculator_test.py, N:M of rows; here the rows are outputs."""
    w = jnp.array(
        [
            [0.69, 0.37, 0.96, 0.81],
            [0.79, 0.55, 0.88, 0.53],
            [0.66, 0.88, 0.40, 0.83],
            [0.13, 0.80, 0.91, 0.96],
        ]
    )
    masks = jprune.find_masks(w.T, 0.5, structure=structures.n_m(2, 4))
    wanted = [[0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]]
    np.testing.assert_array_equal(masks.T, np.array(wanted, bool))


def test_2_4_of_tf_mot() -> None:
    """TensorFlow Model Optimization's 2:4 along the inputs of (in, out)."""
    w = [[0.74, 0.68], [-0.89, -0.45], [-1.68, 1.24], [0.31, -0.6]]
    masks = jprune.find_masks(jnp.array(w), 0.5, structure=structures.n_m(2, 4))
    wanted = np.array([[0, 1], [1, 0], [1, 1], [0, 0]], bool)
    np.testing.assert_array_equal(masks, wanted)


def test_blocks_of_jax_pruner() -> None:
    """The upper two of four quadrants go."""
    w = jnp.kron(jnp.array([[0.1, 0.2], [0.3, 0.4]]), jnp.ones((2, 2)))
    masks = jprune.find_masks(w, 0.5, structure=structures.block((2, 2)))
    np.testing.assert_array_equal(masks, w > 0.25)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (1, 5), (3, 8)])
def test_n_m_passes_through_legal_patterns(n: int, m: int) -> None:
    w = jnp.asarray(np.random.default_rng(0).normal(size=(2 * m, 3)))
    tx = jprune.prune(
        lambda c: float(np.clip(int(c) / 10, 0, 1)),
        structure=structures.n_m(n, m),
    )
    start = tx.init(w)
    for tenths in range(11):
        state, sparsity = start._replace(count=jnp.int32(tenths)), tenths / 10
        masks = tx.update(w, state, w)[1].masks
        kept = np.asarray(masks).reshape(2, m, 3).sum(1)
        assert (kept == max(n, round(m * (1 - sparsity)))).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (1, 5), (3, 8)])
def test_n_m_refuses_numbers_that_it_cannot_meet(n: int, m: int) -> None:
    """Those that it does not round but limit, in every call."""
    params, structure = {"k": jnp.ones((2 * m, 3))}, structures.n_m(n, m)
    calls: list[Callable[[float], Any]] = [
        lambda s: jprune.find_masks(params, s, structure=structure),
        lambda s: jprune.prune(s, structure=structure).init(params),
        lambda s: jprune.sparse_evolution(
            optax.sgd(0.1), s, fraction=0.1, structure=structure
        ).init(params),
    ]
    for sparsity in (1.0, 1 - (n - 0.55) / m):
        message = (
            rf"sparsity=...\)`: `n_m\({n}, {m}\)` keeps at least {n} of {m} "
            rf"units and meets no sparsity above {1 - n / m:.6g}, got "
        )
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call(sparsity)
    for sparsity in (0.0, 1 - n / m, 1 - (n - 0.45) / m):
        calls[1](sparsity)
    jprune.prune(lambda c: 1.0, structure=structure).init(params)


HARD = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_small_pools_in_the_order_of_all(dtype: Any) -> None:
    """NaN first, -0 equals 0: as in ``jnp.argsort``."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.choice(HARD, (8, 60)), dtype)
    for k in range(9):
        masks = jprune.find_masks(
            x, 1 - k / 8, criterion=SIGNED, structure=structures.n_m(0, 8)
        )
        order = jnp.argsort(x, axis=0, descending=True, stable=True)
        wanted = np.argsort(np.asarray(order), axis=0) < k
        np.testing.assert_array_equal(masks, wanted)


def test_pooling_of_tiny_scores() -> None:
    """Squares of these would all be 0 in float32."""
    w = jnp.array([[1.0, 2.0, 3.0, 4.0]]) * 1e-30
    masks = jprune.find_masks(w, 0.5, structure=structures.group(1))
    assert masks.tolist() == [[False, False, True, True]]


SAME: list[tuple[Any, Any, dict[str, Any], tuple[int, ...]]] = [
    # Queries: (model, heads, size), and as one matrix.
    ("fan_in", (), {"in_axis": 0, "out_axis": (1, 2)}, (8, 3, 4)),
    ("group", (2,), {"in_axis": 0, "out_axis": (1, 2)}, (8, 3, 4)),
    ("block", ((3, 5),), {"in_axis": 0, "out_axis": (1, 2)}, (8, 3, 4)),
    ("n_m", (1, 4), {"in_axis": 0, "out_axis": (1, 2)}, (8, 3, 4)),
    # The output projection: (heads, size, model).
    ("fan_in", (), {"in_axis": (0, 1), "out_axis": 2}, (2, 4, 6)),
    ("group", (4,), {"in_axis": (0, 1), "out_axis": 2}, (2, 4, 6)),
    ("block", ((3, 2),), {"in_axis": (0, 1), "out_axis": 2}, (2, 4, 6)),
    ("n_m", (2, 8), {"in_axis": (0, 1), "out_axis": 2}, (2, 4, 6)),
]


@pytest.mark.parametrize(
    ("name", "args", "axes", "shape"),
    [
        pytest.param(*x, marks=[] if i in (0, 6) else pytest.mark.slow)
        for i, x in enumerate(SAME)
    ],
)
@pytest.mark.sweep(4)
def test_attention_kernels(
    name: str, args: Any, axes: Any, shape: tuple[int, ...]
) -> None:
    w = jnp.asarray(np.random.default_rng(2).normal(size=shape))
    make = getattr(structures, name)
    wide = jprune.find_masks(w, 0.6, structure=make(*args, **axes))
    columns = shape[2] if axes["out_axis"] == 2 else shape[1] * shape[2]
    flat = w.reshape(-1, columns)
    wanted = jprune.find_masks(flat, 0.6, structure=make(*args))
    np.testing.assert_array_equal(wide, wanted.reshape(shape))


@pytest.mark.parametrize("name", ["fan_in", "n_m"])
@pytest.mark.sweep(2)
def test_grouped_convolutions(name: str) -> None:
    """A kernel is (3, 3, inputs of a group, outputs of all groups)."""
    w = jnp.asarray(np.random.default_rng(6).normal(size=(3, 3, 4, 6)))
    find = partial(jprune.find_masks, structure=STRUCTURES[name][0])
    alone = [find(part, 0.5) for part in jnp.split(w, 2, axis=-1)]
    found = find(w, 0.5)
    np.testing.assert_array_equal(found, jnp.concatenate(alone, axis=-1))
    assert (found.sum((0, 1, 2)) == 18).all()


STACKED = {
    "unstructured": lambda **k: structures.unstructured(**k),
    "fan_in": lambda **k: structures.fan_in(**k),
    "group": lambda **k: structures.group(2, **k),
    "block": lambda **k: structures.block((3, 2), **k),
    "n_m": lambda **k: structures.n_m(2, 4, **k),
    "channel": lambda **k: structures.channel(**k),
}
STACKED_ALLOCATIONS = {
    "uniform": allocations.uniform(),
    "erdos_renyi": allocations.erdos_renyi(),
    "l2": allocations.global_ranking("l2", min_density=0.25),
    "lamp": allocations.global_ranking("lamp"),
}
STACKS = [
    (s, a) for s in STACKED for a in STACKED_ALLOCATIONS
    if s not in ALIKE or a in ("uniform", "erdos_renyi")
]  # fmt: skip
QUICK_STACKS = {("fan_in", "erdos_renyi")}


@pytest.mark.parametrize(("name", "allocation"), mark(STACKS, QUICK_STACKS))
def test_a_stack_is_its_layers(name: str, allocation: str) -> None:
    rng = np.random.default_rng(4)
    stack = jnp.asarray(rng.normal(size=(3, 8, 6)) * [[[1]], [[4]], [[16]]])
    other = jnp.asarray(rng.normal(size=(4, 6)))
    rule = STACKED_ALLOCATIONS[allocation]
    found = jprune.find_masks(
        {"other": other[None], "stack": stack},
        0.6,
        structure=STACKED[name](batch_axis=0),
        allocation=rule,
    )
    layers = {f"stack{i}": stack[i] for i in range(3)}
    wanted = jprune.find_masks(
        {"other": other, **layers},
        0.6,
        structure=STACKED[name](),
        allocation=rule,
    )
    np.testing.assert_array_equal(found["other"][0], wanted["other"])
    for i in range(3):
        mask = found["stack"][i]
        np.testing.assert_array_equal(mask, wanted[f"stack{i}"])


SHARDED = [
    ("fan_in", "uniform"),
    ("group", "uniform"),
    ("block_ragged", "lamp"),
    ("block", "erdos_renyi"),
    ("n_m", "erdos_renyi"),
    ("channel", "floor"),
]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("name", "allocation"), mark(SHARDED, {("n_m", "erdos_renyi")})
)
def test_sharded(name: str, allocation: str, axis_type: Any) -> None:
    structure = STRUCTURES[name][0]
    lamp = allocations.global_ranking("lamp")
    rule = ALLOCATIONS.get(allocation, lamp)

    @jax.jit
    def choose(params: Any) -> Any:
        first = jprune.find_masks(
            params, 0.25, structure=structure, allocation=rule
        )
        return jprune.find_masks(
            params, 0.6, structure=structure, allocation=rule, masks=first
        )

    rng = np.random.default_rng(5)
    shapes = {"conv": (3, 2, 8, 12), "dense": (16, 8)}
    params = {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    specs = {"conv": P(None, "b", None, "a"), "dense": P("a", "b")}
    placed = {
        k: jax.device_put(p, NamedSharding(mesh, specs[k]))
        for k, p in params.items()
    }
    found = choose(placed)
    jax.tree.map(np.testing.assert_array_equal, found, choose(params))
    for k, mask in found.items():
        if axis_type == AxisType.Explicit:
            assert mask.sharding.spec == placed[k].sharding.spec
        elif not structure.moves:
            assert mask.sharding.is_equivalent_to(placed[k].sharding, mask.ndim)


KERNEL = {"a": {"kernel": jnp.ones((6, 4))}}

ERRORS: list[tuple[str, Callable[[], Any]]] = [
    ("`n_m(n, m)` needs n <= m, got n=5, m=4", lambda: structures.n_m(5, 4)),
    ("`n_m(m)` must be an integer >= 1, got 0", lambda: structures.n_m(0, 0)),
    ("`n_m(n)` must be an integer >= 0, got -1", lambda: structures.n_m(-1, 4)),
    ("`group(size)` must be an integer >= 1, got 2.5", lambda: structures.group(2.5)),  # type: ignore[arg-type]
    ("`block(shape)` must be an integer >= 1, got 0", lambda: structures.block((2, 0))),
    ("`block(shape)` must not be empty", lambda: structures.block(())),
    (
        "`group(pooling=...)` must be one of 'l2', 'l1', 'mean', 'max', got 'sum'",
        lambda: structures.group(2, pooling="sum"),
    ),
    (
        "`block(pooling=...)` must be one of 'l2', 'l1', 'mean', 'max', got 'L2'",
        lambda: structures.block((2, 2), pooling="L2"),
    ),
    (
        "`channel(pooling=...)` must be one of 'l2', 'l1', 'mean', 'max', got 2",
        lambda: structures.channel(pooling=2),  # type: ignore[arg-type]
    ),
    (
        "`channel(axis=...)` must be an int or a sequence of ints, got 1.5",
        lambda: structures.channel(1.5),  # type: ignore[arg-type]
    ),
    (
        "`n_m(2, 4)`: the contracted axis of 'a/kernel' has 6 entries, which 4 does not divide",
        lambda: structures.n_m(2, 4),
    ),
    (
        "`group(5)` does not fit into 'a/kernel', whose window, in and out axes have the sizes (6, 4)",
        lambda: structures.group(5),
    ),
    ("`block((7, 2))` does not fit into 'a/kernel'", lambda: structures.block((7, 2))),
    ("`block((1, 2, 2))` does not fit into 'a/kernel'", lambda: structures.block((1, 2, 2))),
    (
        "`channel(axis=...)`: axis 2 is out of range for 'a/kernel' with 2 axes",
        lambda: structures.channel(2),
    ),
    (
        "`fan_in(out_axis=...)`: axis -3 is out of range for 'a/kernel' with 2 axes",
        lambda: structures.fan_in(out_axis=-3),
    ),
    (
        "`block(out_axis=...)`: axis 0 of 'a/kernel' is already taken by `in_axis`",
        lambda: structures.block((2, 2), out_axis=0),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("message", "make"), ERRORS)
def test_refused(message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        jprune.find_masks(KERNEL, 0.5, structure=make())
    with pytest.raises(ValueError, match=re.escape(message)):
        jprune.prune(0.5, structure=make()).init(KERNEL)


@pytest.mark.parametrize("name", ["fan_in", "n_m"])
def test_no_meaning_in_one_ranking(name: str) -> None:
    structure = STRUCTURES[name][0]
    assert f"{structure}".startswith(f"{name}(")
    for allocation in (ALLOCATIONS["global"], ALLOCATIONS["floor"]):
        message = (
            f"`{structure}` keeps the same number in all pools, which one "
            f"ranking, `{allocation}`, can't"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            jprune.prune(0.5, structure=structure, allocation=allocation)
