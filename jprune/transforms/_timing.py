"""When connections are rewired."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._core.checks import check_every, check_sparsity, rate_at


class Timing(NamedTuple):
    """When connections are rewired, and which fraction of them."""

    fraction: Any  # a number or a schedule
    every: Any
    start: Any
    stop: Any  # None: it never ends
    replace_step: bool

    @property
    def ever(self) -> bool:
        """Whether there are any rewirings, as far as is known."""
        return not isinstance(self.fraction, float) or self.fraction > 0

    def at(self, count: jax.Array) -> tuple[jax.Array, Any]:
        """Whether it is time at a count of updates, and the fraction then."""
        # A rewiring that replaces a step lies between two counts of steps.
        period = self.every + self.replace_step
        turn, rest = jnp.divmod(count - self.start, period)
        step = self.start + turn * self.every
        fraction = rate_at("rewire", self.fraction, step, "fraction")
        due = (count >= self.start) & (rest == 0) & (fraction > 0)
        if self.stop is not None:
            due &= step <= self.stop
        return due, fraction


def check_timing(
    fraction: Any, every: Any, start: Any, stop: Any, replace_step: bool
) -> Timing:
    """The arguments of :func:`rewire` that say when."""
    every = check_every("rewire", every)
    start = check_every("rewire", start, "start", least=0)
    if stop is not None:
        stop = check_every("rewire", stop, "stop")
    elif fraction is None:
        raise ValueError(
            "`rewire(stop=...)` must be an integer >= 1, got None: the default "
            "`fraction` is a cosine from .3 to 0 at `stop`."
        )
    if fraction is None:
        fraction = _cosine(0.3, stop)
    fraction = check_sparsity("rewire", fraction, "fraction")
    return Timing(fraction, every, start, stop, replace_step)


def _cosine(start: float, stop: Any) -> optax.Schedule:
    schedule = optax.cosine_decay_schedule(start, stop)

    def fraction(count: Any) -> Any:
        # It divides integers, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return schedule(count)

    return fraction
