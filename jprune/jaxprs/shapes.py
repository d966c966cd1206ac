"""Which axes of a shape become which of another."""

from collections.abc import Iterator, Sequence


def groups(
    a: Sequence[int], b: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Axes of ``a`` and ``b`` with equal products, from the front."""
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
