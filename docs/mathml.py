"""Formulas as MathML, which browsers draw without a script or a network."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def mathml(node: nodes.Element, display: str) -> str:
    """What a browser draws; an unknown command is an error of the build."""
    latex = node.astext().replace(r"\arg", r"\operatorname{arg}")
    if r"\\" in latex:
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    found = convert(latex, display=display)
    if "<mi>\\" in found or "<mi>&<" in found:
        raise ValueError(f"latex2mathml does not know a command in {latex!r}")
    return found


def inline(writer: Any, node: nodes.math) -> None:
    """A formula within a line."""
    writer.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    """A formula of its own."""
    writer.body.append(f'<div class="math">{mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
