"""What the examples share: flags, digits, batches, tables; no pruning."""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm


def flags(doc: str, **defaults: tuple[Any, str]) -> argparse.Namespace:
    """The command line: ``name=(default, help)`` for each ``--name``."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, (default, text) in defaults.items():
        parser.add_argument(
            f"--{name}",
            type=type(default),
            default=default,
            metavar=type(default).__name__.upper(),
            help=f"{text} (default: {default})" if default else text,
        )
    return parser.parse_args()


class Data(NamedTuple):
    """Inputs in [0, 1] and labels, to train on and to test with."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits() -> Data:
    """1347 images of 8 x 8 pixels to train on, and 450 to test with."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(x, y, random_state=0)
    return Data(x, y, x_test, y_test)


def batches(
    data: Data, steps: range, name: str = "training", size: int = 128
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A batch for each step, drawn by its number, under a progress bar."""
    for step in tqdm(steps, desc=f"{name:20.20}"):
        rows = np.random.default_rng(step).integers(len(data.y), size=size)
        yield data.x[rows], data.y[rows]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> float:
    return float((np.asarray(logits).argmax(-1) == labels).mean())


def print_table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> None:
    """Columns as wide as they need: the first to the left, numbers right."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *rest = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]
        print("  ".join(cells).rstrip())
