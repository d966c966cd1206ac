"""Shapes: which axes become which, and sizes that are symbols."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def is_number(size: Any) -> bool:
    """Whether an axis has a size; else a symbol of ``jax.export`` stands for it."""
    return isinstance(size, (int, np.integer))


def entries(shape: Sequence[Any]) -> int:
    """How many entries there are, where a symbol stands for 1."""
    return math.prod(int(n) for n in shape if is_number(n))


def groups(
    a: Sequence[int], b: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Axes of ``a`` and ``b`` with equal products, from the front.

    Symbols are compared with nothing: what they are a part of is one group.
    """
    if not all(map(is_number, (*a, *b))):
        yield from _around_symbols(a, b)
        return
    i = j = 0
    while i < len(a) or j < len(b):
        start_i, start_j = i, j
        p = q = 1
        if i < len(a):
            p, i = a[i], i + 1
        if j < len(b) and (p != 1 or i > len(a) - 1 or b[j] == 1):
            q, j = b[j], j + 1
        while p != q:
            if p < q:
                p, i = p * a[i], i + 1
            else:
                q, j = q * b[j], j + 1
        yield tuple(range(start_i, i)), tuple(range(start_j, j))


def _around_symbols(
    a: Sequence[Any], b: Sequence[Any]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What is equal in front and at the end, and one group of the rest."""
    limit = min(len(a), len(b))
    first = next((k for k in range(limit) if a[k] != b[k]), limit)
    limit -= first
    last = next((k for k in range(limit) if a[~k] != b[~k]), limit)
    yield from (((k,), (k,)) for k in range(first))
    stop_a, stop_b = len(a) - last, len(b) - last
    rest_a, rest_b = a[first:stop_a], b[first:stop_b]
    if all(map(is_number, (*rest_a, *rest_b))):
        for old, new in groups(rest_a, rest_b):
            yield tuple(first + k for k in old), tuple(first + k for k in new)
    else:
        yield tuple(range(first, stop_a)), tuple(range(first, stop_b))
    yield from (((stop_a + k,), (stop_b + k,)) for k in range(last))
