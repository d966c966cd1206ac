"""The documentation leads to all of its pages."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
TUTORIALS = {p.name for p in (ROOT / "examples" / "tutorials").glob("*.py")}


def test_every_tutorial_is_listed() -> None:
    order = runpy.run_path(str(ROOT / "docs" / "gallery.py"))["ORDER"]
    assert sorted(order) == sorted(TUTORIALS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in TUTORIALS)


def test_every_page_has_a_card_with_its_title() -> None:
    cards = {
        link: title
        for title, link in re.findall(
            r"^:::\{grid-item-card\} (.*)\n:link: (.*)\n", INDEX, re.M
        )
    }
    pages = {
        str(p.relative_to(ROOT / "docs").with_suffix("")): p.read_text("utf-8")
        for p in (ROOT / "docs").rglob("*.md")
        if p.name != "index.md" and p.parent.name in ("docs", "api")
    }
    titles = {
        page: text.partition("# ")[2].partition("\n")[0]
        for page, text in pages.items()
    }
    for name in TUTORIALS:
        script = (ROOT / "examples" / "tutorials" / name).read_text("utf-8")
        titles[f"tutorials/{name.removesuffix('.py')}"] = script.split("\n")[1]
    assert cards == titles


def test_the_contents_are_in_five_parts() -> None:
    assert re.findall(r"^:caption: (.*)$", INDEX, re.M) == [
        "Get started",
        "Tutorials",
        "How-to",
        "Background",
        "API",
    ]
