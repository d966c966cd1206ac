"""Plots draw the numbers that they are given."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import jprune
from jprune import search

matplotlib.use("agg")
KERNEL = jnp.array([[1.0, -4.0], [3.0, -2.0], [0.5, 6.0]])
PARAMS = {"conv": jnp.arange(36.0).reshape(3, 3, 2, 2), "dense": KERNEL}
ALIKE = jprune.allocations.uniform()
MASKS = {**jprune.find_masks(PARAMS, 0.5, allocation=ALIKE), "bias": None}


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    pyplot.close("all")


def test_masks_are_drawn_as_images() -> None:
    figure = jprune.plot.masks(MASKS)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["conv, 50.0%", "dense, 50.0%"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_array_equal(shown[0], MASKS["conv"].reshape(18, 2))
    np.testing.assert_array_equal(shown[1], MASKS["dense"])


def test_weights_are_drawn_and_pruned_ones_are_left_out() -> None:
    params = {**PARAMS, "bias": jnp.ones(2)}
    figure = jprune.plot.masks(MASKS, params, figure=Figure())
    image: Any = figure.axes[1].images[0].get_array()
    np.testing.assert_array_equal(image.mask, ~np.asarray(MASKS["dense"]))
    np.testing.assert_array_equal(image.compressed(), [-4, 3, 6])
    limits = [axes.images[0].get_clim() for axes in figure.axes[:2]]
    assert limits == [(-35, 35)] * 2, "the same colours for all leaves"
    assert not pyplot.get_fignums(), "nothing is left in pyplot"


def test_sparsity_has_a_bar_per_leaf_and_the_total() -> None:
    masks = {"a": jnp.array([True, False]), "b": jnp.zeros((2, 3), bool)}
    _, given = pyplot.subplots()
    axes = jprune.plot.sparsity(masks, ax=given)
    assert axes is given
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == [50, 100]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["a (2)", "b (6)"]
    total: Any = axes.lines[0].get_xdata()
    np.testing.assert_allclose(total, [87.5, 87.5])


def test_accuracy_of_one_run_and_of_many() -> None:
    axes = jprune.plot.accuracy([0.0, 0.5], [0.9, 0.8], label="one")
    again = jprune.plot.accuracy([0.0, 0.5], [[0.9, 0.8], [0.7, 0.4]], ax=axes)
    assert again is axes
    lines: Any = [line.get_ydata() for line in axes.lines]
    one, mean = lines
    np.testing.assert_allclose(one, [90, 80])
    np.testing.assert_allclose(mean, [80, 60])
    (band,) = axes.collections
    np.testing.assert_allclose(band.get_paths()[0].get_extents().y0, 40)


def test_errors_have_two_bars_for_each_parameter() -> None:
    _, given = pyplot.subplots()
    axes = jprune.plot.errors({"w": (0.4, 0.01), "v": (0.2, 0.0)}, ax=given)
    assert axes is given
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == [0.4, 0.2, 0.01, 0.0]
    assert axes.get_xscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["masked", "repaired"]
    for bad in ({}, {"w": (0.1,)}, {"w": (-1.0, 0.0)}):
        with pytest.raises(ValueError, match=r"plot.errors\(errors\).*pair"):
            jprune.plot.errors(bad)  # type: ignore[arg-type]


def test_charts_do_not_land_on_one_another() -> None:
    first = jprune.plot.accuracy([0.0], [1.0])
    assert jprune.plot.sparsity(MASKS).figure is not first.figure


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"plot.masks\(masks\).*without masks"):
        jprune.plot.masks({"bias": None})
    with pytest.raises(ValueError, match=r"leaf 'a' must be bool, got float32"):
        jprune.plot.sparsity({"a": jnp.ones(2)})
    with pytest.raises(
        ValueError, match=r"plot.masks\(masks, params\).*'dense'"
    ):
        jprune.plot.masks(MASKS, {**PARAMS, "dense": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        jprune.plot.accuracy([0.0, 0.5], [0.9, 0.8, 0.7])


def test_without_matplotlib_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import jprune, numpy\n"
        "for call in ('masks', 'sparsity'):\n"
        "    try: getattr(jprune.plot, call)({'a': numpy.ones(2, bool)})\n"
        "    except ImportError as error: print(error)\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    for call, line in zip(
        ("masks", "sparsity"), printed.splitlines(), strict=True
    ):
        assert line.startswith(f"`jprune.plot.{call}` needs matplotlib: ")
        assert '"jprune[examples]"' in line


def test_flax_boxes_and_states() -> None:
    from flax import nnx

    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    boxed = nnx.state(model, nnx.Param)
    masks = jprune.find_masks(boxed, 0.5)
    figure = jprune.plot.masks(masks, boxed)
    image: Any = figure.axes[0].images[0].get_array()
    assert image.compressed().size == 6
    assert len(jax.tree.leaves(masks)) == 1


def tried(losses: list[float], kept: list[bool]) -> search.Front:
    """A front of models that lost so much."""
    found = []
    for i, (loss, fine) in enumerate(zip(losses, kept, strict=True)):
        left = {"multiply_adds": 0.5**i}
        none = np.zeros(0, int)
        fit = search.Fit((), none, none, none, left, left, 0.0)
        promise = search.Promise(
            fine, 300, 0.01, 0.95, 0.9, 0.9 - loss, loss, loss + 0.005
        )
        found.append(search.Point(0.5**i, fit, promise))
    return search.Front(found)


def test_a_front_shows_what_each_model_loses() -> None:
    ax: Any = jprune.plot.front(tried([0.0, 0.004, 0.02], [True, True, False]))
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [100, 50, 25])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0, 0.4, 2.0])
    assert ax.get_xlabel() == "multiply-adds left, %"
    full, open_ = ax.containers
    assert len(full[0].get_xdata()) == 2
    assert open_[0].get_markerfacecolor() == "white"
    with pytest.raises(ValueError, match="nothing was tried"):
        jprune.plot.front(search.Front())


def test_curves_are_a_line_for_each_pool() -> None:
    curves = search.Curves(
        ("a", "b"),
        np.array([1, 1]),
        np.array([4, 10]),
        (np.array([4, 2, 1]), np.array([10, 5, 1])),
        (np.array([0.0, 0.1, 0.4]), np.array([0.0, 0.2, 0.3])),
        {},
    )
    ax: Any = jprune.plot.curves(curves)
    assert [line.get_label() for line in ax.lines] == ["a (4)", "b (10)"]
    np.testing.assert_allclose(ax.lines[1].get_xdata(), [100, 50, 10])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0, 0.2, 0.3])
