"""How long models take, timed in turn."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core.checks import check_integer
from jprune._core.describe import describe
from jprune._core.programs import check_call, check_values
from jprune._core.tables import table
from jprune._core.typing import Tree

TICKS = 20  # of the clock that a call must take at least


class Timing(NamedTuple):
    """The time of one model. The first one of a :class:`Speed` has a ratio of 1."""

    seconds: float  # of a call, median
    ratio: float  # how many times as fast as the first model, median of rounds
    low: float  # quartiles of that
    high: float
    compile_seconds: float


class Speed(dict[str, Timing]):
    """What :func:`speed` returns: timings by model name; prints as a table."""

    def __init__(self, timings: Mapping[str, Timing]) -> None:
        super().__init__(timings)

    def __str__(self) -> str:
        rows = [
            ("model", "call", "times as fast", "half of rounds", "compiled in")
        ]
        rows += [
            (
                name,
                _show(x.seconds),
                f"{x.ratio:.2f}",
                f"{x.low:.2f} to {x.high:.2f}",
                f"{x.compile_seconds:.2f} s",
            )
            for name, x in self.items()
        ]
        return table([*rows, ("",) * 5], 1).rsplit("\n", 2)[0]


def speed(
    models: Mapping[str, tuple[Any, Tree]], *args: Any, rounds: int = 30
) -> Speed:
    """Times several models in turn, on the same arguments.

    All models are compiled first. Every round then calls each model once and waits for
    its results; each round starts with another model. So other load on the machine
    affects all models alike, and ratios are taken within a round.

    Args:
      models: A dict from names to ``(fn, params)``; ratios are to the first model.
      *args: Further arguments of all models, concrete. Timings depend on their shapes:
        use those that you serve.
      rounds: Number of rounds. Static.

    Returns:
      :class:`Speed`: medians, ratios with their quartiles, and seconds of compiling.

    Raises:
      ValueError: There is no model, arguments have no values, or a call is too short
        for the clock.

    >>> import jax.numpy as jnp, jprune
    >>> def fn(w, x):
    ...     return x @ w
    >>> models = {"dense": (fn, jnp.ones((512, 512))), "small": (fn, jnp.ones((512, 8)))}
    >>> found = jprune.report.speed(models, jnp.ones((256, 512)), rounds=5)
    >>> found["dense"].ratio, found["small"].seconds > 0
    (1.0, True)
    """
    call = "speed"
    rounds = check_integer(f"`{call}(rounds=...)`", rounds, 1, static=True)
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            f"`{call}(models)` must be a dict from names to (fn, params), as in "
            '`{"dense": (fn, params), "small": (small.fn, small.params)}`, got '
            f"{describe(models)}."
        )
    check_values(call, args)
    compiled, compiling = {}, {}
    for name, model in models.items():
        if not (isinstance(model, tuple) and len(model) == 2):
            raise ValueError(
                f"`{call}({{{name!r}: ...}})` must be (fn, params), got "
                f"{describe(model)}."
            )
        fn, params = model
        check_call(call, fn, params, args, concrete=True)
        start = time.perf_counter()
        program = jax.jit(fn).lower(params, *args).compile()
        compiling[name] = time.perf_counter() - start
        compiled[name] = (program, params)
        for _ in range(2):  # what is loaded late
            jax.block_until_ready(program(params, *args))
    names = list(models)
    seconds = np.zeros((rounds, len(names)))
    for turn in range(rounds):
        for k in range(len(names)):
            at = (turn + k) % len(names)
            program, params = compiled[names[at]]
            start = time.perf_counter()
            jax.block_until_ready(program(params, *args))
            seconds[turn, at] = time.perf_counter() - start
    _check_clock(call, names, seconds)
    ratios = seconds[:, :1] / seconds
    low, middle, high = np.percentile(ratios, (25, 50, 75), axis=0)
    return Speed(
        {
            name: Timing(
                float(np.median(seconds[:, i])),
                float(middle[i]),
                float(low[i]),
                float(high[i]),
                compiling[name],
            )
            for i, name in enumerate(names)
        }
    )


def latency(fn: Any, params: Tree, *args: Any) -> float:
    """Measures the median seconds of a call; for ``compress(..., by=latency)``.

    Args:
      fn: Any function of parameters and arrays.
      params: Its parameters.
      *args: Further arguments, concrete.

    Raises:
      ValueError: As :func:`speed`.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.report.latency(jnp.dot, jnp.ones((64, 64)), jnp.ones((64, 64))) > 0
    True
    """
    return speed({"model": (fn, params)}, *args)["model"].seconds


def _check_clock(call: str, names: list[str], seconds: np.ndarray) -> None:
    """Refuses what is too short to be told."""
    tick = time.get_clock_info("perf_counter").resolution
    for name, median in zip(names, np.median(seconds, 0), strict=True):
        if median < TICKS * tick:
            raise ValueError(
                f"`{call}(models, *args)`: a call of {name!r} takes {median:.2g} "
                f"seconds, and the clock tells {tick:.2g}: give a larger batch."
            )


def _show(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
