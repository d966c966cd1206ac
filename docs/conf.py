"""Sphinx configuration."""

import inspect
import sys
from pathlib import Path
from typing import Any

import jprune

sys.path.insert(0, str(Path(__file__).parent))  # mathml, gallery

project = "jprune"
author = "The jprune authors"
copyright = "2026, the jprune authors"
version = release = jprune.__version__

myst_heading_anchors = 2
extensions = [
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
exclude_patterns = ["_build"]
# Prompts and outputs are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"
html_math_renderer = "mathml"
sphinx_gallery_conf = {
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"\.py$",  # every one is run
    "within_subsection_order": "gallery.Order",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,
    "remove_config_comments": True,
}
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# The page of a family is its list of names: one entry per name of __all__.
html_theme = "furo"
html_title = f"jprune {version}"
html_static_path = ["static"]
html_css_files = ["custom.css"]
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
