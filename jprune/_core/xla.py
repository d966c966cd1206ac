"""What XLA must be told, since by itself it compiles something worse.

Each with its reason and the version in which it was seen. ``tests/test_xla.py`` compiles
without it as well, and fails where nothing is gained any more: then it goes.
"""

from typing import TypeVar

from jax import lax

T = TypeVar("T")


def not_hoisted(x: T) -> T:
    """Known only where it stands: nothing is made of it ahead of a loop.

    XLA moves what does not change out of a loop and keeps it: all scores in another
    precision, or the place of every unit, as large as the scores. jaxlib 0.10, 0.12.
    """
    x = lax.optimization_barrier(x)
    return x


def made_once(x: T) -> T:
    """Computed and stored, and not anew in all that reads it.

    XLA fuses what is small into each of its readers: of a tree of hundreds of leaves
    every leaf's kernel would concatenate the counts of all. jaxlib 0.10, 0.12.
    """
    x = lax.optimization_barrier(x)
    return x


def apart(x: T) -> T:
    """Summed before what follows is.

    XLA makes one sum of two that follow each other, which then has as many terms in a
    row, and as many roundings. jaxlib 0.10, 0.12.
    """
    x = lax.optimization_barrier(x)
    return x
