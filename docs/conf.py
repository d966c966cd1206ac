"""Sphinx configuration."""

import jprune

project = "jprune"
author = "The jprune authors"
copyright = "2026, the jprune authors"
version = release = jprune.__version__

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
