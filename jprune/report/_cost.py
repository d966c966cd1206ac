"""Parameters, multiply-adds and bytes: dense, masked, compact."""

from typing import Any, NamedTuple

import numpy as np

from jprune._core.hosts import check_here
from jprune._core.programs import bound, check_call
from jprune._core.typing import Masks, Tree
from jprune.compaction.graph.pools import traced
from jprune.compaction.graph.trace import Trace
from jprune.compaction.removal.compact import compacted, fitted, host
from jprune.compaction.removal.dead_units import find_dead


class Count(NamedTuple):
    """The cost of one form of a model."""

    parameters: int
    multiply_adds: int
    bytes: int


class Cost(NamedTuple):
    """What :func:`cost` returns; prints as a table."""

    dense: Count
    masked: (
        Count  # what isn't 0; it is stored and computed densely all the same
    )
    compact: Count

    def __str__(self) -> str:
        head = f"{'':8}{'parameters':>14}{'multiply-adds':>17}{'bytes':>15}"
        return "\n".join(
            [head]
            + [
                f"{name:8}{a:>14,}{b:>17,}{c:>15,}"
                for name, (a, b, c) in self._asdict().items()
            ]
        )


def cost(
    fn: Any,
    params: Tree,
    *args: Any,
    masks: Masks | None = None,
    **static: Any,
) -> Cost:
    """Counts parameters, multiply-adds and bytes before and after pruning.

    Multiply-adds are those of products and convolutions in the jaxpr. The body of a
    scan counts as often as it runs, that of a ``while`` once, and of a ``cond`` the
    most costly branch counts. A symbol of ``jax.export`` counts as 1. For the masked
    model, a multiply-add counts unless one of its factors is known to be 0.
    (``Compiled.cost_analysis()`` differs: it counts the body of every loop once.)

    Args:
      fn: Any function of parameters and arrays.
      params: Its parameters, concrete.
      *args: Further arguments, arrays or shapes.
      masks: Masks that are applied first, as by :func:`jprune.compact`.
      **static: Further keyword arguments of ``fn``, fixed; no arrays.

    Returns:
      A :class:`Cost`. Bytes are those of the parameters as they are stored.

    Raises:
      ValueError: As :func:`jprune.compact`.

    >>> import jax, jax.numpy as jnp, jprune
    >>> from jprune import report
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
    >>> params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 3))}
    >>> masks = {"w": jnp.arange(8) > 5}
    >>> print(report.cost(fn, params, jnp.ones((10, 4)), masks=masks))
                parameters    multiply-adds          bytes
    dense               56              560            224
    masked              32              140            224
    compact             14              140             56
    """
    check_call("cost", fn, params, args, concrete=True)
    check_here("cost", params, masks)
    fn = bound("cost", fn, static)
    masks = None if masks is None else fitted(params, masks)
    trace = traced(fn, params, args)
    dead = find_dead(trace, host(params, masks))
    _, less = compacted(trace, dead, fn, params, args, masks)
    whole, nonzero = dead.multiply_adds
    left, _ = less.walk([None] * len(less.leaves)).multiply_adds()
    entries, stored = _stored(trace)
    kept = sum(int(np.count_nonzero(~x.zero)) for x in dead.masked)
    return Cost(
        Count(entries, whole, stored),
        Count(kept, nonzero, stored),
        Count(_stored(less)[0], left, _stored(less)[1]),
    )


def _stored(trace: Trace) -> tuple[int, int]:
    """Entries and bytes of the parameters."""
    sizes = [int(np.prod(leaf.shape, dtype=int)) for leaf in trace.leaves]
    widths = [leaf.dtype.itemsize for leaf in trace.leaves]
    return sum(sizes), sum(
        n * width for n, width in zip(sizes, widths, strict=True)
    )
