"""Draws the picture of the first page: a kernel, masked, and made smaller.

python docs/draw_landing.py
"""

from pathlib import Path

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import jprune
from jprune.models import MLP

IMAGES = Path(__file__).parent / "images"
SCHEMES = {"light": ("#1f2328", "#d5d8dc"), "dark": ("#e6e6e6", "#3a3d41")}


def kernels() -> list[np.ndarray]:
    """A kernel of a network of digits: dense, masked, compact."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    model = MLP((32, 20, 10))
    params = model.init(jax.random.key(0), x[:1])
    tx = optax.adam(3e-3)

    def loss(params):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, tx.init(params)
    (params, _), _ = jax.lax.scan(step, start, length=300)
    units = jprune.units(jprune.trace_units(model.apply, params, x[:1]))
    result = jprune.one_shot(model.apply, params, [x], 0.5, structure=units)
    small = jprune.compact(model.apply, result.params, x[:1])
    trees = (params, result.params, small.params)
    return [np.asarray(t["params"]["Dense_1"]["kernel"]) for t in trees]


def draw(found: list[np.ndarray], scheme: str) -> None:
    """One picture, for pages on white or on black."""
    ink, removed = SCHEMES[scheme]
    titles = ("trained", "half of the units at zero", "units removed")
    texts = (
        "32 x 20 weights",
        "still 32 x 20: no smaller, no faster",
        "16 x 10: a quarter, repaired",
    )
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.1), layout="constrained")
    colors = plt.get_cmap("RdBu").with_extremes(bad=removed)
    inputs, outputs = found[0].shape
    for ax, kernel, title, text in zip(axes, found, titles, texts, strict=True):
        shown = np.where(kernel == 0, np.nan, kernel).T
        limit = np.nanquantile(abs(shown), 0.98)
        ax.imshow(shown, cmap=colors, vmin=-limit, vmax=limit)
        ax.set(xlim=(-0.5, inputs - 0.5), ylim=(outputs - 0.5, -0.5))
        ax.set_title(title, color=ink, fontsize=15, loc="left")
        below = kernel.shape[1] + 0.4
        ax.text(-0.5, below, text, color=ink, va="top", fontsize=12)
        ax.axis("off")
    fig.savefig(IMAGES / f"landing_{scheme}.png", dpi=130, transparent=True)


def main() -> None:
    """Both pictures."""
    found = kernels()
    for scheme in SCHEMES:
        draw(found, scheme)


if __name__ == "__main__":
    main()
