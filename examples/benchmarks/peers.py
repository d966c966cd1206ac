"""jprune beside JaxPruner, torch.nn.utils.prune and Torch-Pruning, on digits.

    git clone https://github.com/google-research/jaxpruner
    pip install torch torch-pruning
    python examples/benchmarks/peers.py --jaxpruner jaxpruner

A library that is not there is left out, and a line says so. JaxPruner is not on
PyPI, and calls that JAX has removed since its last commit are put back here.

Everything trains an MLP 64-300-100-10 for as many steps, by Adam with the same
cosine, without restarts. For each seed the first weights and the batches are
the same in all libraries. Kernels are pruned, biases are not. "Gradual" is the
cubic ramp from a tenth to two thirds of the steps, with new masks every 25.
"activation" weighs magnitudes by the inputs of a batch of all training images
at the beginning of the ramp; "repaired" means dense for half of the steps, then
`one_shot`, and trained on. "Straight-through" chooses masks at every step; in
jprune it pulls pruned weights to 0 (SR-STE). "(target)" is
`erdos_renyi(target=)`. RigL and SET begin to rewire at step 0.

Of the 1,347 training images a quarter is for validation: it says which method
of a library is its best. Test accuracies are of the other 450, in percent, with
standard errors. A difference is of runs of the same seed.
"""

import argparse
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jprune
from jprune.allocations import erdos_renyi, global_ranking, uniform
from jprune.models import MLP

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import cross_entropy, digits, print_table

WIDTHS = (64, 300, 100, 10)
MODEL = MLP(WIDTHS[1:])
BATCH = 64
RATE = 1e-2
EVERY = 25
DATA = digits()
X, X_HELD, Y, Y_HELD = train_test_split(DATA.x, DATA.y, random_state=0)
Params = Any


class Plan(NamedTuple):
    """How long is trained, and when weights are removed."""

    steps: int

    @property
    def ramp(self) -> tuple[int, int]:
        """Its first and its last step."""
        first, last = self.steps // 10, self.steps * 2 // 3
        return first // EVERY * EVERY, last // EVERY * EVERY

    @property
    def adam(self) -> Any:
        return optax.adam(optax.cosine_decay_schedule(RATE, self.steps))

    def sparsity(self, last: float, since: int = 0, ahead: int = 0) -> Any:
        """Of a step counted from `since`; JaxPruner is one step ahead."""
        first, end = self.ramp
        cubic = optax.polynomial_schedule(
            0.0, last, 3, end - first, first - since
        )
        if not ahead:
            return cubic
        return lambda step: cubic(step + ahead) * (step >= first - since)


class Start(NamedTuple):
    """What all methods have in common for a seed."""

    params: Params
    rows: np.ndarray  # int, [steps, BATCH]
    key: jax.Array


class Found(NamedTuple):
    """A pruned network."""

    params: Params
    kept: int  # weights of kernels, by the masks


class How(NamedTuple):
    """An optimizer, and what else happens in a step."""

    tx: Any
    view: Callable[..., Params] = lambda params, state: params  # for the loss
    after: Callable[..., Params] = lambda params, state: params
    fn: Any = MODEL.apply


Run = Callable[[Start], Found]
Recipe = Callable[[Plan, float], Run]


def start(seed: int, plan: Plan) -> Start:
    key = jax.random.key(seed)
    params = jax.jit(MODEL.init)(key, X[:1])
    rows = np.random.default_rng(seed).integers(
        len(Y), size=(plan.steps, BATCH)
    )
    return Start(params, rows, key)


@partial(jax.jit, static_argnames="make")
def fit(
    make: Callable[[Any], How],
    given: Any,
    params: Params,
    rows: Any,
    moments: Any = None,
) -> tuple[Params, Any]:
    """Trains as `make(given)` says, on with the moments of an earlier Adam."""
    how = make(given)
    state = how.tx.init(params)
    if moments is not None:
        state = (moments, *state[1:])

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        params, state = carry

        def loss(params: Params) -> jax.Array:
            logits = how.fn(how.view(params, state), jnp.asarray(X)[rows])
            return cross_entropy(logits, jnp.asarray(Y)[rows])

        updates, state = how.tx.update(jax.grad(loss)(params), state, params)
        params = how.after(optax.apply_updates(params, updates), state)
        return (params, state), None

    (params, state), _ = jax.lax.scan(step, (params, state), rows)
    return how.view(params, state), state


@cache
def dense(plan: Plan, *widths: int) -> Callable[[Any], How]:
    """One for each size, so that each is compiled once."""
    return lambda _: How(optax.chain(plan.adam), fn=MLP(widths).apply)


def size(masks: Any) -> int:
    return sum(int(np.sum(mask)) for mask in jax.tree.leaves(masks))


# jprune -----------------------------------------------------------------------


def gradual(
    allocation: Callable[[float], Any], ahead: int = 0, noise: float = 0.0
) -> Recipe:
    """By magnitude."""

    def recipe(plan: Plan, sparsity: float) -> Run:
        ramp = plan.sparsity(sparsity, ahead=ahead)

        def make(_: Any) -> How:
            tx = jprune.prune(
                ramp, allocation=allocation(sparsity), every=EVERY
            )
            return How(optax.chain(plan.adam, tx))

        def run(start: Start) -> Found:
            params = jax.tree.map(lambda p: p * (1 + noise), start.params)
            params, state = fit(make, None, params, start.rows)
            return Found(params, size(jprune.get_masks(state)))

        return run

    return recipe


def begun(plan: Plan, start: Start, steps: int) -> tuple[Params, Any, Any]:
    """Dense for some steps: parameters, moments, and sums over the inputs."""
    params, state = fit(
        dense(plan, *WIDTHS[1:]), None, start.params, start.rows[:steps]
    )
    stats = jprune.calibrate(MODEL.apply, params, [(X,)])
    return params, state[0], stats


def weighted(allocation: Callable[[float], Any]) -> Recipe:
    """By magnitude times the norm of the input."""

    def recipe(plan: Plan, sparsity: float) -> Run:
        begin = plan.ramp[0]
        ramp = plan.sparsity(sparsity, since=begin)

        def make(stats: Any) -> How:
            criterion = jprune.criteria.activation(stats)
            tx = jprune.prune(
                ramp,
                criterion=criterion,
                allocation=allocation(sparsity),
                every=EVERY,
            )
            return How(optax.chain(plan.adam, tx))

        def run(start: Start) -> Found:
            params, moments, stats = begun(plan, start, begin)
            params, state = fit(
                make, stats, params, start.rows[begin:], moments
            )
            return Found(params, size(jprune.get_masks(state)))

        return run

    return recipe


def repaired(allocation: Any) -> Recipe:
    """Pruned at once, and repaired, in the middle of the training."""

    def recipe(plan: Plan, sparsity: float) -> Run:
        half = plan.steps // 2

        def make(masks: Any) -> How:
            return How(optax.chain(plan.adam, jprune.keep_masks(masks)))

        def run(start: Start) -> Found:
            params, moments, _ = begun(plan, start, half)
            found = jprune.one_shot(
                MODEL.apply, params, [(X,)], sparsity, allocation=allocation
            )
            params, _ = fit(
                make, found.masks, found.params, start.rows[half:], moments
            )
            return Found(params, size(found.masks))

        return run

    return recipe


def straight_through(active: bool) -> Recipe:
    """Masks of every step; pruned weights go on learning."""

    def recipe(plan: Plan, sparsity: float) -> Run:
        begin = plan.ramp[0]
        ramp = plan.sparsity(sparsity, since=begin)
        find = partial(
            jprune.find_masks, allocation=erdos_renyi(target=sparsity)
        )

        def make(stats: Any) -> How:
            criterion = jprune.criteria.magnitude()
            if active:
                criterion = jprune.criteria.activation(stats)

            def view(params: Params, state: Any) -> Params:
                now = ramp(optax.tree.get(state[1], "count"))
                masks = find(params, now, criterion=criterion)
                return jprune.straight_through(params, masks, decay=2e-4)

            counting = optax.scale_by_schedule(lambda _: 1.0)
            return How(optax.chain(plan.adam, counting), view)

        def run(start: Start) -> Found:
            params, moments, stats = begun(plan, start, begin)
            params, _ = fit(make, stats, params, start.rows[begin:], moments)
            return Found(params, size(jprune.read_masks(params)))

        return run

    return recipe


def rewired(method: Callable[..., Any]) -> Recipe:
    """Sparse from the first step on."""

    def recipe(plan: Plan, sparsity: float) -> Run:
        def make(key: jax.Array) -> How:
            return How(
                method(
                    plan.adam,
                    sparsity,
                    allocation=erdos_renyi(),
                    every=EVERY,
                    stop=plan.steps * 3 // 4,
                    replace_step=True,
                    key=key,
                )
            )

        def run(start: Start) -> Found:
            params, state = fit(make, start.key, start.params, start.rows)
            return Found(params, size(jprune.get_masks(state)))

        return run

    return recipe


def always(allocation: Any) -> Callable[[float], Any]:
    """The same for every sparsity."""
    return lambda sparsity: allocation


def on_the_way(sparsity: float) -> Any:
    return erdos_renyi(target=sparsity)


L2 = always(global_ranking("l2"))
JPRUNE: dict[str, Recipe] = {
    "jprune, uniform": gradual(always(uniform())),
    "jprune, uniform, 1 step ahead": gradual(always(uniform()), ahead=1),
    "jprune, uniform, weights * (1 + 1e-6)": gradual(
        always(uniform()), noise=1e-6
    ),
    "jprune, Erdos-Renyi": gradual(always(erdos_renyi())),
    "jprune, Erdos-Renyi (target)": gradual(on_the_way),
    "jprune, Erdos-Renyi (target), 1 step ahead": gradual(on_the_way, ahead=1),
    "jprune, one ranking": gradual(always(global_ranking())),
    "jprune, one ranking (l2)": gradual(L2),
    "jprune, straight-through": straight_through(active=False),
    "jprune, straight-through, activation": straight_through(active=True),
    "jprune, RigL": rewired(jprune.rigl),
    "jprune, SET": rewired(jprune.sparse_evolution),
    "jprune, SET, first rewired at 25": rewired(
        partial(jprune.sparse_evolution, start=EVERY)
    ),
    "jprune, repaired, Erdos-Renyi": repaired(erdos_renyi()),
    "jprune, activation, one ranking (l2)": weighted(L2),
    "jprune, activation, Erdos-Renyi (target)": weighted(on_the_way),
}


# JaxPruner --------------------------------------------------------------------


def import_jaxpruner(folder: str) -> Any:
    """Of 2024, with what JAX and the checkout lack."""

    def tree_map(fn: Any, tree: Any, *rest: Any) -> Any:
        """As it was: a None in the first tree is None in the result."""
        return jax.tree.map(
            lambda x, *others: None if x is None else fn(x, *others),
            tree,
            *rest,
            is_leaf=lambda x: x is None,
        )

    jax.tree_map = tree_map  # type: ignore[attr-defined]
    # It is named in types alone.
    sys.modules.setdefault("ml_collections", types.ModuleType("ml_collections"))
    sys.path.insert(0, folder)
    import jaxpruner

    return jaxpruner


def theirs(library: Any, name: str, distribution: str | None = None) -> Recipe:
    """One of JaxPruner's classes."""

    def recipe(plan: Plan, sparsity: float) -> Run:
        options: dict[str, Any] = {"sparsity": sparsity}
        if distribution:
            rule = getattr(library.sparsity_distributions, distribution)
            options = {"sparsity_distribution_fn": partial(rule, **options)}
        schedule = library.PolynomialSchedule(EVERY, *plan.ramp)
        if name in ("RigL", "SET"):
            stop = plan.steps * 3 // 4
            schedule = library.PeriodicSchedule(EVERY, 0, stop)
            fraction = optax.cosine_decay_schedule(0.3, stop)
            options["drop_fraction_fn"] = fraction

        def make(key: jax.Array) -> How:
            pruner = getattr(library, name)(
                scheduler=schedule, rng_seed=key, **options
            )

            def view(params: Params, state: Any) -> Params:
                seen = pruner.pre_forward_update(params, state)
                # What it sees is not differentiated.
                return jax.tree.map(
                    lambda p, s: p + jax.lax.stop_gradient(s - p), params, seen
                )

            return How(
                pruner.wrap_optax(plan.adam), view, pruner.post_gradient_update
            )

        def run(start: Start) -> Found:
            params, state = fit(make, start.key, start.params, start.rows)
            masks = state.masks
            if name.startswith("Ste"):
                masks = jprune.read_masks(params)
            return Found(params, size(masks))

        return run

    return recipe


def jaxpruner_recipes(library: Any) -> dict[str, Recipe]:
    of = partial(theirs, library)
    return {
        "JaxPruner, uniform": of("MagnitudePruning", "uniform"),
        "JaxPruner, Erdos-Renyi": of("MagnitudePruning", "erk"),
        "JaxPruner, one ranking (l2)": of("GlobalMagnitudePruning"),
        "JaxPruner, straight-through": of("SteMagnitudePruning", "erk"),
        "JaxPruner, RigL": of("RigL", "erk"),
        "JaxPruner, SET": of("SET", "erk"),
    }


# torch ------------------------------------------------------------------------


def to_torch(params: Params) -> Any:
    """The same network in torch."""
    import torch

    layers: list[Any] = []
    for layer in params["params"].values():
        linear = torch.nn.Linear(*layer["kernel"].shape)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.array(layer["kernel"].T)))
            linear.bias.copy_(torch.tensor(np.array(layer["bias"])))
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def from_torch(model: Any) -> Params:
    layers = {
        f"Dense_{i}": {
            "kernel": linear.weight.detach().numpy().T.copy(),
            "bias": linear.bias.detach().numpy().copy(),
        }
        for i, linear in enumerate(model[::2])
    }
    return {"params": layers}


def torch_fit(
    model: Any,
    rows: np.ndarray,
    plan: Plan,
    first: int = 0,
    prune: Callable[[int], None] = lambda step: None,
) -> None:
    """The same Adam and cosine; masks are of the weights before a step."""
    import torch

    x, y = torch.tensor(X), torch.tensor(Y)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, eps=1e-8)
    for step, batch in enumerate(torch.tensor(rows), first):
        rate = RATE * (1 + np.cos(np.pi * step / plan.steps)) / 2
        optimizer.param_groups[0]["lr"] = rate
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        prune(step)
        optimizer.step()
    with torch.no_grad():
        model(x)  # its hooks mask the weights of the last step


def torch_gradual(together: bool) -> Recipe:
    """`global_unstructured`, or `l1_unstructured` layer by layer."""
    from torch.nn.utils import prune

    def recipe(plan: Plan, sparsity: float) -> Run:
        ramp = plan.sparsity(sparsity)

        def run(start: Start) -> Found:
            model = to_torch(start.params)
            parts = [(linear, "weight") for linear in model[::2]]
            sizes = np.array([linear.weight.numel() for linear in model[::2]])
            sizes = sizes.sum(keepdims=True) if together else sizes
            lost = np.zeros_like(sizes)

            def mask(step: int) -> None:
                if step % EVERY:
                    return
                now = np.round(float(ramp(step)) * sizes).astype(int)
                # An amount is of the weights that are left.
                more = (now - lost).tolist()
                lost[:] = now
                if together:
                    prune.global_unstructured(
                        parts, prune.L1Unstructured, amount=more[0]
                    )
                    return
                for part, amount in zip(parts, more, strict=True):
                    prune.l1_unstructured(*part, amount=amount)

            torch_fit(model, start.rows, plan, prune=mask)
            kept = sum(int(linear.weight_mask.sum()) for linear in model[::2])
            return Found(from_torch(model), kept)

        return run

    return recipe


# Whole units ------------------------------------------------------------------


class Small(NamedTuple):
    """A network with fewer hidden units, before and after its second half."""

    widths: tuple[int, ...]
    before: float  # validation accuracy
    held: float
    test: float
    microseconds: float  # of a call with 64 images

    @property
    def multiply_adds(self) -> int:
        return int(np.dot(self.widths[:-1], self.widths[1:]))


def fewer_units(left: float) -> float:
    """The sparsity of both hidden layers that leaves this of the products."""
    a, b, c, d = WIDTHS
    both, one = b * c, a * b + c * d
    root = (one**2 + 4 * both * left * (both + one)) ** 0.5
    return 1 - (root - one) / (2 * both)


def small_jprune(plan: Plan, left: float, start: Start, repair: bool) -> Small:
    """Half of the steps, `units`, `compact`, and the other half."""
    half = plan.steps // 2
    params, moments, _ = begun(plan, start, half)
    x = X[:2]
    units = jprune.units(jprune.trace_units(MODEL.apply, params, x))
    sparsity = fewer_units(left)
    if repair:
        found = jprune.one_shot(
            MODEL.apply, params, [(X,)], sparsity, structure=units
        )
        params, masks = found.params, found.masks
    else:
        masks = jprune.find_masks(params, sparsity, structure=units)
    small = jprune.compact(MODEL.apply, params, x, masks=masks)
    widths = MLP.from_params(small.params).features
    before, _ = judge(small.params)
    params, _ = fit(
        dense(plan, *widths),
        None,
        small.params,
        start.rows[half:],
        small.take(moments),
    )
    fn = MLP(widths).apply
    seconds = jprune.report.latency(fn, params, X[:BATCH])
    widths = (WIDTHS[0], *widths)
    return Small(widths, before, *judge(params), 1e6 * seconds)


def small_torch(plan: Plan, left: float, start: Start) -> Small:
    """The same by Torch-Pruning's `MagnitudePruner`."""
    import torch
    import torch_pruning

    half = plan.steps // 2
    model, x = to_torch(start.params), torch.tensor(X[:BATCH])
    torch_fit(model, start.rows[:half], plan)
    torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=fewer_units(left),
        ignored_layers=[model[-1]],
    ).step()
    before, _ = judge(from_torch(model))
    torch_fit(model, start.rows[half:], plan, half)
    times = []
    with torch.inference_mode():
        for _ in range(200):
            begin = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - begin)
    widths = (WIDTHS[0], *(linear.out_features for linear in model[::2]))
    return Small(
        widths, before, *judge(from_torch(model)), 1e6 * float(np.median(times))
    )


# What came out ----------------------------------------------------------------


def judge(params: Params) -> tuple[float, float]:
    """Accuracies on validation and on test images, in percent."""
    model = MLP.from_params(params)
    pairs = (X_HELD, Y_HELD), (DATA.x_test, DATA.y_test)
    held, test = (
        100 * float(np.mean(answers(model, params, x) == y)) for x, y in pairs
    )
    return held, test


@partial(jax.jit, static_argnames="model")
def answers(model: MLP, params: Params, x: Any) -> jax.Array:
    return model.apply(params, x).argmax(-1)


def mean(values: Sequence[float], sign: str = "") -> str:
    """And its standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):{sign}.2f} +- {error:.2f}"


class Row(NamedTuple):
    """A seed's."""

    kept: int
    zeros: int  # of those kept
    held: float
    test: float
    seconds: float  # of the training


# What is compared with what.
PAIRS = (
    ("jprune, uniform", "JaxPruner, uniform"),
    ("jprune, uniform, 1 step ahead", "JaxPruner, uniform"),
    ("jprune, uniform, weights * (1 + 1e-6)", "jprune, uniform"),
    ("jprune, Erdos-Renyi", "JaxPruner, Erdos-Renyi"),
    ("jprune, Erdos-Renyi (target)", "JaxPruner, Erdos-Renyi"),
    ("jprune, Erdos-Renyi (target), 1 step ahead", "JaxPruner, Erdos-Renyi"),
    ("jprune, Erdos-Renyi (target)", "jprune, Erdos-Renyi"),
    ("jprune, activation, Erdos-Renyi (target)", "JaxPruner, Erdos-Renyi"),
    ("jprune, one ranking (l2)", "JaxPruner, one ranking (l2)"),
    ("jprune, straight-through", "JaxPruner, straight-through"),
    ("jprune, straight-through, activation", "JaxPruner, straight-through"),
    ("jprune, RigL", "JaxPruner, RigL"),
    ("jprune, SET", "JaxPruner, SET"),
    ("jprune, SET, first rewired at 25", "JaxPruner, SET"),
    ("jprune, uniform", "torch, l1_unstructured"),
    ("jprune, one ranking", "torch, global_unstructured"),
)


def show(rows: dict[str, list[Row]]) -> None:
    """The table of a sparsity, and differences of the same seeds."""
    cells = []
    for name, found in rows.items():
        kept, zeros, held, test, seconds = zip(*found, strict=True)
        # Medians: the first seed compiles.
        numbers = (f"{np.mean(zeros):.0f}", mean(held), mean(test))
        cells.append((name, kept[0], *numbers, f"{np.median(seconds):.1f}"))
    head = ("", "weights kept", "of them 0", "validation", "test", "seconds")
    print_table(head, cells)
    tests = {
        name: np.array([row.test for row in found])
        for name, found in rows.items()
    }
    pairs = [(a, b) for a, b in PAIRS if a in rows and b in rows]
    best = {
        library: max(
            (name for name in rows if name.startswith(f"{library},")),
            key=lambda name: np.mean([row.held for row in rows[name]]),
            default="",
        )
        for library in ("jprune", "JaxPruner", "torch")
    }
    pairs += [
        (best["jprune"], best[library])
        for library in ("JaxPruner", "torch")
        if best["jprune"] and best[library]
    ]
    print("\nDifference in test accuracy; last: of the best by validation")
    print_table(
        ("", "less", "points"),
        [(a, b, mean(tests[a] - tests[b], "+")) for a, b in pairs],
    )


def show_units(rows: dict[tuple[str, float], list[Small]]) -> None:
    """The table of smaller networks."""
    cells = []
    for (name, left), found in rows.items():
        adds = found[0].multiply_adds
        widths = "-".join(str(n) for n in found[0].widths)
        columns = zip(*(small[1:] for small in found), strict=True)
        before, held, test, micros = columns
        cells.append(
            (
                f"{name}, about {left:g}",
                widths,
                f"{adds:,}",
                *(mean(values) for values in (before, held, test)),
                f"{np.median(micros):.0f}",
            )
        )
    head = ["", "widths", "multiply-adds", "validation, at once"]
    head += ["validation", "test", f"us, {BATCH} images"]
    print_table(head, cells)


def libraries(folder: str, names: Sequence[str]) -> dict[str, Recipe]:
    """The recipes of what is there, and lines about what is not."""
    found: dict[str, Recipe] = {}
    packages = ["jprune", "jax", "flax", "optax", "scikit-learn"]
    if "JaxPruner" in names:
        if folder:
            found |= jaxpruner_recipes(import_jaxpruner(folder))
        else:
            print("JaxPruner is left out: --jaxpruner has no checkout of it.")
    if "torch" in names:
        try:
            import torch
            import torch_pruning  # noqa: F401

            torch.set_num_threads(1)
            found["torch, l1_unstructured"] = torch_gradual(False)
            found["torch, global_unstructured"] = torch_gradual(True)
            packages += ["torch", "torch-pruning"]
        except ImportError as error:
            print(f"torch and Torch-Pruning are left out: {error}.")
    if "jprune" in names:
        found |= JPRUNE
    lines = [f"{name} {version(name)}" for name in packages]
    print(f"{', '.join(lines)}; {os.cpu_count()} cores.")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--jaxpruner", default=os.environ.get("JAXPRUNER", ""))
    add("--libraries", nargs="+", default=["JaxPruner", "torch", "jprune"])
    add("--seeds", type=int, default=8)
    add("--steps", type=int, default=1000, help="of each training")
    add("--sparsities", type=float, nargs="+", default=[0.98, 0.99])
    add("--left", type=float, nargs="*", default=[0.5, 0.25, 0.1])
    args = parser.parse_args(argv)
    if args.seeds < 2 or args.steps < 100:
        parser.error("needs 2 seeds and 100 steps")
    begin, busy = time.perf_counter(), time.process_time()
    plan = Plan(args.steps)
    recipes = libraries(args.jaxpruner, args.libraries)
    starts = [start(seed, plan) for seed in range(args.seeds)]

    whole = [
        judge(fit(dense(plan, *WIDTHS[1:]), None, s.params, s.rows)[0])
        for s in starts
    ]
    held, test = zip(*whole, strict=True)
    print(f"\nDense: validation {mean(held)}, test {mean(test)}.")
    for sparsity in args.sparsities:
        rows: dict[str, list[Row]] = {}
        for name in tqdm(recipes, f"{sparsity:.0%}"):
            run = recipes[name](plan, sparsity)
            for one in starts:
                clock = time.perf_counter()
                params, kept = jax.block_until_ready(run(one))
                clock = time.perf_counter() - clock
                kernels = [w for w in jax.tree.leaves(params) if w.ndim > 1]
                zeros = kept - sum(int(np.count_nonzero(w)) for w in kernels)
                row = Row(kept, zeros, *judge(params), clock)
                rows.setdefault(name, []).append(row)
        print(f"\n{sparsity:.0%} sparse, {args.seeds} seeds")
        show(rows)

    units: dict[tuple[str, float], list[Small]] = {}
    ways: dict[str, Callable[..., Small]] = {}
    if "torch, l1_unstructured" in recipes:
        ways["Torch-Pruning"] = small_torch
    if "jprune" in args.libraries:
        ways["jprune"] = partial(small_jprune, repair=False)
        ways["jprune, repaired"] = partial(small_jprune, repair=True)
    for left in args.left:
        for name, way in tqdm(ways.items(), f"{left:g} of the products"):
            units[name, left] = [way(plan, left, start=one) for one in starts]
    if units:
        print("\nWhole units removed after half of the steps")
        show_units(units)
    wall, cpu = time.perf_counter() - begin, time.process_time() - busy
    print(f"\n{wall:.0f} s, {cpu:.0f} s of processor time.")


if __name__ == "__main__":
    main()
