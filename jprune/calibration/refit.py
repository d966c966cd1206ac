"""Least squares of what is kept, for any masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.checks import check_number
from jprune._core.describe import describe
from jprune._core.stats import Moments, Site, Stats
from jprune._core.trees import is_hole, leaves_with_path, rebuild, unique_names
from jprune._core.typing import Masks, Tree
from jprune._core.views import Steps, look, overlap, put
from jprune.calibration.problems import problem_of, shift_of
from jprune.calibration.pruner import Sums
from jprune.calibration.solvers.least_squares import fitted
from jprune.masks import apply_masks, full_masks

RIDGE = 1e-3


def refit(
    params: Tree, masks: Masks, stats: Stats, *, ridge: float | None = None
) -> Tree:
    r"""Repairs kept weights by least squares, so that outputs change little.

    It takes any masks: those of :func:`jprune.find_masks`, of training with
    :func:`jprune.prune` or :func:`jprune.rigl`, or from elsewhere. Each product is
    repaired separately, with the inputs of the dense model:

    .. math:: \min_V |X V - X W|_F^2 + \lambda |V - W|_F^2
              \quad \text{where } V = M \odot V,

    with :math:`\lambda` = ``ridge`` times the mean diagonal of :math:`X^T X`. A bias that
    is added to the product is changed too, to correct the mean. A masked bias stays 0,
    and the mean of its output is not corrected.

    Args:
      params: The dense parameters, whose outputs are the target.
      masks: As in :func:`jprune.apply_masks`.
      stats: What :func:`calibrate` returned for these parameters.
      ridge: How strongly weights are held at their old values. None: 1e-3. 0: exact
        least squares; of several best solutions, the one nearest to ``params``.

    Returns:
      Parameters, 0 where masks are False. A parameter that has no statistics, saw no
      row, or is multiplied in several ways is only masked.

    Raises:
      ValueError: Masks or statistics do not belong to these parameters.

    Cost: for a kernel [K, N], up to 60 products of [K, K] and [K, N] (4 K with
    ``ridge=0``).

    >>> import jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return x @ params["w"]
    >>> params = {"w": jnp.array([[1.], [1.]])}
    >>> stats = jprune.calibrate(fn, params, [jnp.array([[1., 1.], [0., 1.]])])
    >>> masks = {"w": jnp.array([[False], [True]])}
    >>> jprune.refit(params, masks, stats, ridge=0.)["w"]  # (2, 1) by (1, 1): 1.5
    Array([[0. ],
           [1.5]], dtype=float32)
    """
    if not isinstance(stats, Stats):
        raise ValueError(
            "`refit(params, masks, stats)`: stats must be what "
            f"`calibrate(fn, params, batches)` returned, got {describe(stats)}."
        )
    held = RIDGE
    if ridge is not None:
        held = check_number("`refit(ridge=...)`", ridge)
        if not isinstance(held, float) or not 0 <= held < np.inf:
            raise ValueError(
                f"`refit(ridge=...)` must be a number of at least 0, got "
                f"{describe(ridge)}."
            )
    masks = full_masks("`refit(masks=...)`", params, masks)
    leaves = leaves_with_path(params)
    places = dict(
        zip(
            unique_names([p for p, _ in leaves]),
            range(len(leaves)),
            strict=True,
        )
    )
    values = [x for _, x in leaves]
    kept = [x for _, x in leaves_with_path(masks)]
    products = _products(stats)
    ways: dict[str, list[Steps]] = {}
    for site, _ in products:
        ways.setdefault(site.path, []).append(site.steps)
    for site, moments in products:
        if site.path not in places:
            raise ValueError(
                f"`refit(params, masks, stats)`: the statistics are of "
                f"{site.path!r}, which the parameters do not have."
            )
        place = places[site.path]
        several = ways[site.path]
        if is_hole(kept[place]) or overlap(several, np.shape(values[place])):
            continue  # of several ways one would not be repaired
        mask = kept[place]
        bias = None if site.bias is None else places.get(site.bias)
        free = None
        if bias is not None:
            own = kept[bias]
            own = (
                jnp.ones(np.shape(values[bias]), bool) if is_hole(own) else own
            )
            free = look(site.bias_steps, own)
        kernel, move = _repaired(
            look(site.steps, jnp.asarray(values[place])),
            look(site.steps, mask),
            moments,
            free,
            held,
        )
        dtype = jnp.result_type(values[place])
        values[place] = put(
            site.steps, jnp.asarray(values[place]), kernel.astype(dtype)
        )
        if bias is not None:
            old = jnp.asarray(values[bias])
            now = look(site.bias_steps, old)
            values[bias] = put(
                site.bias_steps, old, (now + move).astype(old.dtype)
            )
    return apply_masks(rebuild(params, values), masks)


def _products(stats: Stats) -> list[tuple[Site, Moments]]:
    """Products, those of the same weights together."""
    found: dict[Any, tuple[Site, Moments]] = {}
    for site in stats.sites:
        own = stats.moments[site.moments]
        key = site.path, site.steps
        if key in found:
            total = jax.tree.map(jnp.add, found[key][1], own)
            found[key] = (site._replace(bias=None), total)
        else:
            found[key] = (site, own)
    return list(found.values())


def _repaired(
    kernel: jax.Array,
    mask: jax.Array,
    moments: Moments,
    free: jax.Array | None,
    ridge: float,
) -> tuple[jax.Array, jax.Array]:
    """The kernel [..., G, K, N], and how its bias moves, [..., G, N]."""
    shape = kernel.shape
    rows, columns = shape[-2:]
    flat = Sums(
        Moments(
            moments.gram.reshape(-1, rows, rows),
            moments.sum.reshape(-1, rows),
            moments.count.reshape(-1),
        )
    )
    kernel, mask = (x.reshape(-1, rows, columns) for x in (kernel, mask))
    steps = 60 if ridge else max(200, 4 * rows)

    def solved(centred: bool) -> jax.Array:
        problem = problem_of(kernel, flat, centred=centred)
        result: jax.Array = fitted(problem, mask, ridge, steps)
        return result

    move = jnp.zeros((len(kernel), columns), flat.own.sum.dtype)
    if free is None:
        new = solved(False)
    else:
        free = free.reshape(-1, columns)
        new = solved(True)
        if not bool(jnp.all(free)):
            # Without a bias of its own an output has to come to its mean as it is.
            new = jnp.where(free[:, None, :], new, solved(False))
        move = jnp.where(free, shift_of(flat, kernel, new), 0.0)
    unseen = (flat.own.count == 0)[:, None, None]
    new = jnp.where(unseen, kernel, new)
    return new.reshape(shape), move.reshape(*shape[:-2], columns)
