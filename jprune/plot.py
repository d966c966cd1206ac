"""Plots masks, errors and searches with matplotlib.

Each function draws on the figure or axes that you pass, or on new ones of pyplot, and
returns them: a ``Figure`` for several images, or the ``Axes`` of one chart. matplotlib
is imported at the first plot.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jprune._core.trees import is_hole, leaves_with_path, path_name
from jprune._core.typing import Masks, Tree
from jprune.masks import full_masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy", "curves", "errors", "front", "masks", "sparsity"]


def _pyplot(call: str) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError(
            f"`jprune.plot.{call}` needs matplotlib: "
            '`python -m pip install "jprune[examples]"`.'
        ) from None
    return pyplot


def _matrices(call: str, tree: Masks) -> list[tuple[str, np.ndarray]]:
    """The name of each mask, and the mask with its last axis as columns."""
    found = [
        (path_name(path), np.atleast_1d(np.asarray(leaf)))
        for path, leaf in leaves_with_path(tree)
        if not is_hole(leaf)
    ]
    for name, leaf in found:
        if leaf.dtype != bool:
            raise ValueError(
                f"`jprune.plot.{call}(masks)`: the leaf {name!r} must be bool, "
                f"got {leaf.dtype}."
            )
    if not found:
        raise ValueError(
            f"`jprune.plot.{call}(masks)` got a tree without masks."
        )
    return [(name, leaf.reshape(-1, leaf.shape[-1])) for name, leaf in found]


def masks(
    masks: Masks, params: Tree = None, *, figure: "Figure | None" = None
) -> "Figure":
    """Draws every mask as an image: the last axis across, all others down.

    Args:
      masks: A tree of masks; leaves without masks are left out.
      params: The parameters, to show kept weights in colours, on one scale for all
        leaves. Without them, kept weights are dark.
      figure: Where to draw; default: a new figure.

    Returns:
      The ``matplotlib.figure.Figure``, with one ``Axes`` for each mask.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: There is no mask, or it does not fit ``params``.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.array([[1., -4.], [3., -2.]]), "b": jnp.ones((4, 2))}
    >>> figure = jprune.plot.masks(jprune.find_masks(params, .5), params)
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['a, 50.0%', 'b, 50.0%']
    """
    if params is not None:
        masks = full_masks("`jprune.plot.masks(masks, params)`", params, masks)
    names, kept = zip(*_matrices("masks", masks), strict=True)
    images: Any = kept
    colors: dict[str, Any] = {"cmap": "Greys", "vmin": 0, "vmax": 1}
    if params is not None:
        leaves = zip(
            leaves_with_path(params), leaves_with_path(masks), strict=True
        )
        weights = [w for (_, w), (_, mask) in leaves if not is_hole(mask)]
        images = [
            np.ma.masked_array(np.asarray(w, float).reshape(m.shape), ~m)
            for w, m in zip(weights, kept, strict=True)
        ]
        largest = max(abs(image.filled(0)).max(initial=0) for image in images)
        colors = {"cmap": "RdBu", "vmin": -largest, "vmax": largest}
    figure = figure or _pyplot("masks").figure(
        figsize=(3.2 * len(images), 3.6), layout="constrained"
    )
    axes = figure.subplots(1, len(images), squeeze=False)[0]
    for axis, name, mask, image in zip(axes, names, kept, images, strict=True):
        drawn = axis.imshow(
            image, aspect="auto", interpolation="nearest", **colors
        )
        axis.set_title(f"{name}, {1 - mask.mean():.1%}", fontsize="medium")
        axis.set(facecolor="0.75", xticks=[], yticks=[])
        axis.set_xlabel(f"{mask.shape[0]} x {mask.shape[1]}")
    if params is not None:
        figure.colorbar(drawn, ax=axes, label="weight; grey: pruned")
    return figure


def sparsity(masks: Masks, *, ax: "Axes | None" = None) -> "Axes":
    """Draws the sparsity of each leaf as a bar, and the total as a line.

    Args:
      masks: A tree of masks.
      ax: Where to draw; default: those of a new figure.

    Returns:
      The ``matplotlib.axes.Axes``.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: There is no mask.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.array([[1., -4.], [3., -2.]]), "b": jnp.ones((4, 2))}
    >>> axes = jprune.plot.sparsity(jprune.find_masks(params, .5))
    >>> [float(bar.get_width()) for bar in axes.patches]
    [50.0, 50.0]
    """
    found = _matrices("sparsity", masks)
    if ax is None:
        ax = _pyplot("sparsity").subplots()[1]
    lost = [100 * (1 - mask.mean()) for _, mask in found]
    total = np.average(lost, weights=[mask.size for _, mask in found])
    bars = ax.barh([f"{n} ({m.size:,})" for n, m in found], lost)
    ax.bar_label(bars, [f"{x:.1f}%" for x in lost], padding=3)
    ax.axvline(total, color="0.4", ls="--", label=f"all: {total:.1f}%")
    ax.set(xlim=(0, 115), xlabel="sparsity, %")
    ax.invert_yaxis()
    ax.legend(loc="lower right")
    return ax


def accuracy(
    sparsities: Any,
    accuracies: Any,
    *,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws accuracy against sparsity; pass ``ax`` to add a curve to a plot.

    Args:
      sparsities: Fractions removed, ``[n]``.
      accuracies: Accuracies, or any other score in [0, 1]: ``[n]``, or
        ``[runs, n]`` for the mean of runs and their range.
      label: The name of the curve, for ``ax.legend()``.
      ax: Where to draw; default: those of a new figure.

    Returns:
      The ``matplotlib.axes.Axes``.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: The lengths differ.

    >>> import jprune
    >>> axes = jprune.plot.accuracy([0., .5, .9], [.97, .98, .94])
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('sparsity, %', 'accuracy, %')
    """
    x = 100 * np.asarray(sparsities, float)
    y = 100 * np.atleast_2d(np.asarray(accuracies, float))
    if x.ndim != 1 or y.ndim != 2 or y.shape[1:] != x.shape:
        raise ValueError(
            "`jprune.plot.accuracy(sparsities, accuracies)` needs [n] and [n] "
            f"or [runs, n], got the shapes {x.shape} and "
            f"{np.shape(accuracies)}."
        )
    if ax is None:
        ax = _pyplot("accuracy").subplots()[1]
    (line,) = ax.plot(x, y.mean(0), marker="o", label=label)
    if len(y) > 1:
        ax.fill_between(
            x, y.min(0), y.max(0), color=line.get_color(), alpha=0.15, lw=0
        )
    ax.set(xlabel="sparsity, %", ylabel="accuracy, %")
    return ax


def errors(
    errors: Mapping[str, tuple[float, float]], *, ax: "Axes | None" = None
) -> "Axes":
    """Draws the output errors of each parameter, masked and after repair.

    Args:
      errors: ``{path: (before, after)}``, as :func:`jprune.one_shot` returns.
      ax: Where to draw; default: those of a new figure.

    Returns:
      The ``matplotlib.axes.Axes``, its error axis logarithmic.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: There are no errors, or one is not a pair of numbers of at least 0.

    >>> import jprune
    >>> axes = jprune.plot.errors({"w": (.4, .01), "v": (.2, .05)})
    >>> [text.get_text() for text in axes.get_yticklabels()]
    ['w', 'v']
    """
    names, pairs = list(errors), np.array(list(errors.values()), float)
    if pairs.shape != (len(names), 2) or not names or not (pairs >= 0).all():
        raise ValueError(
            "`jprune.plot.errors(errors)` needs a pair of numbers of at least 0 "
            f"for each parameter, got {dict(errors)}."
        )
    if ax is None:
        ax = _pyplot("errors").subplots()[1]
    places = np.arange(len(names))
    for shift, values, label in zip(
        (-0.2, 0.2), pairs.T, ("masked", "repaired"), strict=True
    ):
        ax.barh(places + shift, values, 0.4, label=label)
    # Errors of 0 have no place on a logarithmic axis: the bar is empty.
    ax.set_xscale("log" if (pairs > 0).any() else "linear")
    ax.set_yticks(places, names)
    ax.set(xlabel="error of outputs, as a fraction of their power")
    ax.invert_yaxis()
    ax.legend()
    return ax


def curves(curves: Any, *, ax: "Axes | None" = None) -> "Axes":
    """Draws the loss against the units that one pool keeps, for each pool.

    Args:
      curves: What :func:`jprune.search.sensitivity` returned.
      ax: Where to draw; default: those of a new figure.

    Returns:
      The ``matplotlib.axes.Axes``, with one line for each pool.

    Raises:
      ImportError: matplotlib is missing.

    >>> import numpy as np, jprune
    >>> from jprune import search
    >>> axes = jprune.plot.curves(search.Curves(
    ...     ("w",), np.array([1]), np.array([4]), (np.array([4, 2, 1]),),
    ...     (np.array([0., .1, .4]),), {}))
    >>> axes.lines[0].get_xdata().tolist()
    [100.0, 50.0, 25.0]
    """
    if ax is None:
        ax = _pyplot("curves").subplots()[1]
    for name, size, counts, losses in zip(
        curves.names, curves.sizes, curves.counts, curves.losses, strict=True
    ):
        kept = 100 * np.asarray(counts) / max(int(size), 1)
        ax.plot(kept, losses, marker=".", label=f"{name} ({size:,})")
    ax.set(xlabel="units that stay, %", ylabel="loss, all others whole")
    ax.set_yscale("symlog", linthresh=1e-3)
    ax.invert_xaxis()
    ax.legend(fontsize="small")
    return ax


def front(
    front: Any,
    *,
    by: str = "multiply_adds",
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the loss of each model that was tried, with its upper bound.

    Args:
      front: The ``front`` of what :func:`jprune.compress` returned.
      by: The cost along the x axis.
      label: The name of the curve, for ``ax.legend()``.
      ax: Where to draw; default: those of a new figure.

    Returns:
      The ``matplotlib.axes.Axes``: points with their bounds, filled where the promise
      is kept, and a line at the tolerance.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: Nothing was tried.
    """
    points = list(front)
    if not points:
        raise ValueError("`jprune.plot.front(front)`: nothing was tried.")
    if ax is None:
        ax = _pyplot("front").subplots()[1]
    left = np.array([100 * point.fit.left[by] for point in points])
    loss, bound = (
        np.array([100 * getattr(point.promise, name) for point in points])
        for name in ("loss", "bound")
    )
    kept = np.array([point.promise.kept for point in points])
    (line,) = ax.plot(left, loss, alpha=0.5, label=label)
    for some, face in ((kept, line.get_color()), (~kept, "white")):
        ax.errorbar(
            left[some],
            loss[some],
            [np.zeros(some.sum()), (bound - loss)[some]],
            fmt="o",
            capsize=3,
            color=line.get_color(),
            markerfacecolor=face,
        )
    ax.axhline(100 * points[0].promise.tolerance, color="0.4", ls="--")
    ax.set(
        xlabel=f"{by.replace('_', '-')} left, %",
        ylabel="points lost, and at most",
    )
    return ax
