"""How much is lost if a pool keeps so many of its units."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jprune._core.checks import check_integer
from jprune._core.describe import describe
from jprune._core.hosts import check_together
from jprune._core.programs import bound, check_call
from jprune._core.progress import bar
from jprune._core.typing import Tree, Where
from jprune.allocations import Pools
from jprune.calibration.calibrate import arguments, read_batches, reading
from jprune.criteria import Criterion
from jprune.masks import apply_masks
from jprune.search.curves import Curves
from jprune.search.distances import distance_of
from jprune.search.judge import samples_of
from jprune.search.ordered import Ordered, costs_of, order
from jprune.structures import Structure

LEAST = 0.04  # of a pool: where its curve ends


def sensitivity(
    fn: Any,
    params: Tree,
    batches: Iterable[Any],
    *,
    structure: Structure,
    where: Where = None,
    criterion: Criterion | None = None,
    levels: int = 14,
    distance: Callable[[Any, Any], Any] | None = None,
    loss: Callable[..., Any] | None = None,
    inputs: int | None = None,
    seed: Any = 0,
    **static: Any,
) -> Curves:
    """Measures the loss when one pool keeps only its best units, for each pool.

    It ranks the units of each pool once. Then, one pool at a time, it keeps fewer and
    fewer of them and compares the outputs with those of the dense model, without labels.
    One compiled program, with the counts as an input, measures everything.

    Args:
      fn: Any function of parameters and arrays.
      params: Its parameters, trained.
      batches: As in :func:`jprune.calibrate`; all are held at once. A few hundred
        samples are enough.
      structure: ``jprune.units(graph)``, or ``unstructured()`` for single weights.
      where: The leaves that are pruned, as in :func:`jprune.find_masks`. For units, pass
        ``where`` to :func:`jprune.units`.
      criterion: Ranks the units, without gradients. None:
        ``gauss_newton(fn, params, first_batch)``.
      levels: How many counts of each pool are tried, from all its units by even ratios
        to 4 % of them. Static.
      distance: ``(dense outputs, outputs) -> scalar``. None: :func:`kl` for outputs
        with several numbers per sample in the last axis, as logits have, else
        :func:`squared_error`.
      loss: ``(outputs, *batch) -> scalar``, used instead of ``distance``, for example
        with labels. The curves are then its increase.
      inputs: How many entries of a batch are arguments of ``fn``; ``loss`` gets all
        entries. None: all.
      seed: A seed or a random key of any form, for the criterion.
      **static: Further keyword arguments of ``fn``, fixed; no arrays.

    Returns:
      :class:`Curves`, for :func:`fit`.

    Raises:
      ValueError: There is no batch, the structure has nothing to search for, or the
        criterion reads gradients.

    Cost: ``levels`` forward passes of all batches for each pool.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"w": jax.random.normal(keys[0], (4, 8)),
    ...           "v": jax.random.normal(keys[1], (8, 3))}
    >>> x = jax.random.normal(keys[2], (64, 4))
    >>> graph = jprune.trace_units(fn, params, x)
    >>> curves = jprune.search.sensitivity(
    ...     fn, params, [x], structure=jprune.units(graph))
    >>> curves.names, curves.counts[0][:4].tolist()
    (('v[0]',), [8, 6, 5, 4])
    >>> fit = jprune.search.fit(curves, {"multiply_adds": .5})
    >>> fit.counts.tolist(), fit.left["multiply_adds"]
    ([4], 0.5)
    """
    call = "sensitivity"
    levels = check_integer(f"`{call}(levels=...)`", levels, 2, static=True)
    fn = bound(call, fn, static)
    check_call(call, fn, params, (), concrete=True)
    read = [arguments(x) for x in read_batches(call, batches)]
    if not read:
        raise ValueError(f"`{call}(batches=...)` is empty: nothing was read.")
    if inputs is not None:
        inputs = check_integer(f"`{call}(inputs=...)`", inputs, 1, static=True)
    for number, args in enumerate(read):
        check_call(call, fn, params, args[:inputs], concrete=False)
        check_together(call, number, params, args)
    first = read[0][:inputs]
    with reading(call, first):
        outputs = jax.eval_shape(fn, params, *first)
    if loss is None:
        distance = distance_of(outputs) if distance is None else distance
        found = jax.eval_shape(distance, outputs, outputs)
    else:
        found = jax.eval_shape(loss, outputs, *read[0])
    if getattr(found, "shape", None) != ():
        name = "distance" if loss is None else "loss"
        raise ValueError(
            f"`{call}({name}=...)` must return a scalar, got {describe(found)}."
        )
    ordered = order(call, fn, params, first, structure, where, criterion, seed)
    lost = _measure(fn, params, read, inputs, ordered, distance, loss)
    return curves_of(
        ordered,
        costs_of(fn, params, first, ordered),
        levels,
        lost,
    )


def curves_of(
    ordered: Ordered,
    costs: Any,
    levels: int,
    lost: Callable[[np.ndarray], float],
) -> Curves:
    """Curves from what is lost at counts of all pools."""
    pools = ordered.pools
    multiple = max(ordered.method.structure.round_to, 1)
    tried = [_levels(int(n), levels, multiple) for n in pools.sizes]
    whole = lost(pools.sizes)
    losses = []
    with bar("sensitivity", sum(len(x) - 1 for x in tried)) as shown:
        for i, counts in enumerate(tried):
            found = [0.0]
            for count in counts[1:]:
                other = pools.sizes.copy()
                other[i] = count
                found.append(lost(other) - whole)
                shown.update()
            rising = np.nan_to_num(np.array(found), nan=np.inf)
            losses.append(np.maximum.accumulate(rising))
    return Curves(
        _names(pools),
        pools.numbers,
        pools.sizes,
        tuple(tried),
        tuple(losses),
        costs,
        multiple,
    )


def _names(pools: Pools) -> tuple[str, ...]:
    """The first name of each pool, numbered where another one has it."""
    seen: Counter[str] = Counter()
    found = []
    for name, *_ in pools.names:
        seen[name] += 1
        found.append(f"{name}, {seen[name]}" if seen[name] > 1 else name)
    return tuple(found)


def _levels(size: int, levels: int, multiple: int) -> np.ndarray:
    """Counts by even ratios, from all units down; all different."""
    counts = np.rint(size * np.geomspace(1, LEAST, levels) / multiple)
    counts = np.minimum(np.maximum(counts, 1) * multiple, size)
    counts[0] = size
    return np.unique(counts.astype(np.int64))[::-1]


def _measure(
    fn: Any,
    params: Tree,
    batches: list[Any],
    inputs: int | None,
    ordered: Ordered,
    distance: Any,
    loss: Any,
) -> Callable[[np.ndarray], float]:
    """A function of counts; data are arguments, so that none is a constant."""

    @jax.jit
    def lost(
        params: Tree, chosen: Tree, places: Any, counts: Any, batch: Any, y: Any
    ) -> jax.Array:
        masks = ordered.masks(chosen, places, counts)
        outputs = fn(apply_masks(params, masks), *batch[:inputs])
        found: jax.Array
        found = distance(y, outputs) if loss is None else loss(outputs, *batch)
        return found

    dense = jax.jit(fn)
    wanted = [None] * len(batches)
    if loss is None:
        wanted = [dense(params, *batch[:inputs]) for batch in batches]
    weights = np.array([samples_of(batch) for batch in batches], float)
    weights /= weights.sum()

    def total(counts: np.ndarray) -> float:
        counts = np.asarray(counts, np.int32)
        parts = [
            lost(params, ordered.chosen, ordered.places, counts, batch, y)
            for batch, y in zip(batches, wanted, strict=True)
        ]
        return float(weights @ np.array(parts, float))

    return total
