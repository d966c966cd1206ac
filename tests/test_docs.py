"""The documentation leads to all of its pages."""

import importlib
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
TUTORIALS = {p.name for p in (ROOT / "examples" / "tutorials").glob("*.py")}


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("gains")


def test_tables_of_gains_are_what_was_printed(gains: Any) -> None:
    for page in gains.PAGES:
        assert gains.filled(page) == (ROOT / page).read_text("utf-8"), (
            f"{page}: run python docs/gains.py"
        )


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("resnet", "batch 256", "batch 512"),
        ("minilm", " to distil (", " to train ("),
        ("compact", "90%  ", "91%  "),
        ("shrinking", "| shrinking |", "| shrinking | 1 |"),
    ],
)
def test_an_output_of_another_form_is_named(
    gains: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    old: str,
    new: str,
) -> None:
    printed = importlib.import_module("printed")
    shutil.copytree(printed.OUTPUTS, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(printed, "OUTPUTS", tmp_path)
    gains.rows()
    file = tmp_path / f"{name}.txt"
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(printed.Unread, match=f"{name}.txt has no"):
        gains.rows()


def test_every_script_is_listed() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    folder = ROOT / "examples"
    scripts = [
        script.relative_to(folder).as_posix()
        for script in sorted(folder.glob("**/*.py"))
        if script.parent.name != "tutorials"
    ]
    missing = [name for name in scripts if name not in page]
    # Code that scripts of benchmarks share.
    shared = ["benchmarks/one_shot_models.py", "benchmarks/served.py"]
    assert missing == shared


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
