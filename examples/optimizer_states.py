"""What `rewire` does with the state of every optimizer of optax.

Prints the table of docs/sparse_training.md:

    python examples/optimizer_states.py
"""

import argparse
import functools
import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from tqdm import tqdm

import jprune
from jprune.transforms._slots import Slot, find_slots

PARAMS = {"kernel": jnp.ones((256, 512))}
# What some need beside a learning rate.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "dpsgd": {"l2_norm_clip": 1.0, "noise_multiplier": 0.1, "seed": 0},
    "galore": {"rank": 8},
    "noisy_sgd": {"key": jax.random.key(0)},
    "polyak_sgd": {"max_learning_rate": 1.0},
    "rmsprop": {"momentum": 0.9},
    "schedule_free": {"base_optimizer": optax.sgd(0.1)},
    "sgd": {"momentum": 0.9},
}
MORE: dict[str, Callable[[], Any]] = {
    "apply_if_finite(adam)": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "flatten(adam)": lambda: optax.flatten(optax.adam(0.1)),
    "lbfgs(linesearch=None)": lambda: optax.lbfgs(linesearch=None),
    "mechanize(sgd)": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "MultiSteps(sgd)": lambda: optax.MultiSteps(
        optax.sgd(0.1), 2
    ).gradient_transformation(),
    "partition(adam)": lambda: optax.partition(
        {"": optax.adam(0.1)}, {"kernel": ""}
    ),
    "sam(sgd)": lambda: optax.contrib.sam(
        optax.sgd(0.1), optax.contrib.normalize()
    ),
}


def is_function(member: Any) -> bool:
    """Partial ones are some: nadam is one of adam."""
    return inspect.isfunction(member) or isinstance(member, functools.partial)


def optimizers() -> dict[str, Callable[[], Any]]:
    """Public functions with a learning rate; no single links of a chain."""
    found = dict(MORE)
    for module in (optax, optax.contrib):
        for name, function in inspect.getmembers(module, is_function):
            arguments = dict(ARGUMENTS.get(name, {}))
            parameters = inspect.signature(function).parameters
            if name.startswith(("_", "scale_by")) or not any(
                p.endswith("learning_rate") for p in parameters
            ):
                continue
            rate = parameters.get("learning_rate")
            if rate and rate.default is inspect.Parameter.empty:
                arguments["learning_rate"] = 0.1
            found[name] = lambda f=function, a=arguments: f(**a)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def describe(slots: dict[str, Slot]) -> tuple[str, str]:
    """The names of the slots of weights, and of the statistics."""

    def names(kind: str) -> str:
        own = [
            name.replace("/kernel", "").replace("/", " ").split()
            for name, slot in slots.items()
            if slot.kind == kind
        ]
        # A number is a place in a chain or a list, no name.
        words = [[w for w in path if not w.isdigit()][-1:] for path in own]
        found = dict.fromkeys(w for path in words for w in path)
        return ", ".join(f"`{word}`" for word in found) or "-"

    return names("weights"), names("statistic")


def row(name: str, make: Callable[[], Any]) -> str:
    """A line of the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are deprecated
        inner = make()
    masks = jprune.find_masks(PARAMS, 0.5)
    try:
        fresh, shared = describe(find_slots("rewire", inner, PARAMS, masks))
    except ValueError as error:
        why = re.split(", of shape|;", str(error).partition("`: ")[2])[0]
        return f"| {name} | refused: {why} | |"
    return f"| {name} | {fresh} | {shared} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args(argv)
    made = tqdm(optimizers().items(), desc="optimizers")
    rows = [row(name, make) for name, make in made]
    print("| optimizer | fresh for new connections | stay |")
    print("|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
