"""Libraries that only saving and loading need."""

import importlib
from typing import Any


def needed(call: str, name: str, install: str = '"jprune[export]"') -> Any:
    """A library that is imported when it is needed.

    Raises:
      ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"`export.{call}` needs {name}: `python -m pip install {install}`."
        ) from error
