"""Sphinx configuration."""

import inspect
from typing import Any

import jprune

project = "jprune"
author = "The jprune authors"
copyright = "2026, the jprune authors"
version = release = jprune.__version__

myst_heading_anchors = 2
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
exclude_patterns = ["_build"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# The page of a family is its list of names: one entry per name of __all__.
html_theme = "furo"
html_title = f"jprune {version}"
nitpicky = False


def show_defaults(
    app: Any, what: str, name: str, thing: Any, *given: Any
) -> tuple[str, str] | None:
    """Signatures in which members are calls; Sphinx takes them for tuples."""
    del app, name, given
    if what != "function":
        return None
    signature = inspect.signature(thing)
    bare = [
        p.replace(annotation=p.empty) for p in signature.parameters.values()
    ]
    return str(inspect.Signature(bare)), ""


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", show_defaults)
