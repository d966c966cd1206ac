"""Bars of tqdm, where it is installed, there is a terminal and it takes long."""

from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any


class _Silent:
    """A bar that shows nothing."""

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """Goes on."""

    def set_postfix_str(self, text: str) -> None:
        """Says what is done."""


def each(call: str, items: Iterable[Any]) -> Iterator[Any]:
    """Items in turn, with a bar; how many there are need not be known."""
    total = len(items) if isinstance(items, Sized) else None
    with bar(call, total) as shown:
        for item in items:
            yield item
            shown.update()


def bar(call: str, total: int | None = None) -> Any:
    """A bar to be entered, with ``update()`` and ``set_postfix_str(text)``."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _Silent()
    return tqdm(total=total, desc=call, delay=2.0, disable=None, leave=False)
