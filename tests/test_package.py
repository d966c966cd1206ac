"""The package as a whole: what it imports, exports and documents."""

import ast
import importlib
import itertools
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib
from typing import Any

import pytest

import jprune

ROOT = pathlib.Path(__file__).parent.parent

FAMILIES = [
    "jprune",
    "jprune.allocations",
    "jprune.calibration",
    "jprune.compaction",
    "jprune.criteria",
    "jprune.export",
    "jprune.grids",
    "jprune.jaxprs",
    "jprune.models",
    "jprune.plot",
    "jprune.projections",
    "jprune.report",
    "jprune.search",
    "jprune.selection",
    "jprune.solvers",
    "jprune.structures",
    "jprune.transforms",
]


def test_import_is_light() -> None:
    """It loads nothing that JAX and optax do not."""
    code = """
import sys, jax, optax
before = set(sys.modules)
import jprune
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert set(loaded.split()) - {"jax", "jaxlib"} <= {
        "jprune",
        *sys.stdlib_module_names,
    }


def rooms() -> dict[str, set[str]]:
    """What each room may import, as the design says."""
    text = (ROOT / "docs" / "design.md").read_text().partition("## Rooms")[2]
    rows = [line.split("|") for line in text.splitlines() if line[:3] == "| `"]
    return {
        row[1].strip(" `"): set(re.findall(r"`(\w+)`", row[3])) for row in rows
    }


def test_rooms_import_as_the_design_says() -> None:
    allowed = rooms()
    for room, others in allowed.items():  # no circles: each stands after those
        assert others <= set(list(allowed)[: list(allowed).index(room)])
    seen = set()
    for file in (ROOT / "jprune").rglob("*.py"):
        room = file.relative_to(ROOT / "jprune").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            parts = node.module.split(".")
            assert "_src" not in parts, f"{file}: {node.module}"
            names = [*parts[2:], *(alias.name for alias in node.names)]
            for other in parts[1:2] or [alias.name for alias in node.names]:
                if parts[0] == "jprune" and other != room:
                    assert other in allowed[room], f"{file}: {other}"
                    private = [n for n in names if n.startswith("_")]
                    assert not private, f"{file}: {private} of {other}"
    assert seen == set(allowed)


@pytest.mark.parametrize("name", FAMILIES)
def test_api_page_lists_what_is_exported(name: str) -> None:
    module = importlib.import_module(name)
    page = name.rpartition(".")[2]
    text = (ROOT / "docs" / "api" / f"{page}.md").read_text()
    listed = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.M)
    exported = [n for n in module.__all__ if n not in ("jprune", *_modules())]
    if name == "jprune":  # these have pages of their own
        others = (
            *jprune.transforms.__all__,
            *jprune.compaction.__all__,
            *jprune.jaxprs.__all__,
            *jprune.calibration.__all__,
            *jprune.search.__all__,
        )
        exported = [n for n in exported if n not in others]
    assert sorted(listed) == sorted(exported)
    for public in module.__all__:
        assert getattr(module, public).__doc__, public


def test_contributing_names_what_there_is() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text()
    code = re.findall(
        r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)
    )
    paths = [x for x in code if re.fullmatch(r"[\w.]+/[\w./]*", x)]
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path.replace("_yours", "_magnitude")).exists(), path
    for name in re.findall(r"`([A-Z]{3,})`", text):  # tables
        files = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("jprune/**/*.py")]
        assert any(f"\n{name}" in file.read_text() for file in files), name


def _modules() -> list[str]:
    return [name.rpartition(".")[2] for name in FAMILIES]


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_oldest_versions_are_those_that_are_required() -> None:
    oldest = dict(
        line.split("==")
        for line in (ROOT / ".ci" / "oldest.txt").read_text().split()
    )
    required = project()["dependencies"]
    extras = project()["optional-dependencies"].values()
    for line in [*required, *itertools.chain(*extras)]:
        name, least = re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        assert line not in required or name in oldest
        if name in oldest:
            assert _numbers(oldest[name])[:3] == _numbers(least)[:3]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_state_the_versions_that_are_tested(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    oldest = (ROOT / ".ci" / "oldest.txt").read_text()
    first, one, other = re.search(  # type: ignore[union-attr]
        r"ested with JAX ([\d.]+), the oldest .*newest that `pip` finds: "
        r"([\d.]+) on Python 3\.11, ([\d.]+) on Python 3\.12 and later\.",
        text,
    ).groups()
    assert f"jax=={first}\n" in oldest
    assert _numbers(first) < _numbers(one) < _numbers(other)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, f"{version}.0.0".split(".")))[:4]


def test_each_python_that_is_promised_is_tested() -> None:
    prefix = "Programming Language :: Python :: "
    classified = [
        name.removeprefix(prefix)
        for name in project()["classifiers"]
        if name.startswith(prefix + "3.")
    ]
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r"3\.\d+", matrix) == classified
    assert project()["requires-python"] == f">={classified[0]}"
    for script in re.findall(r"run: (\S+)", workflow):
        assert (ROOT / script).stat().st_mode & 0o111


def test_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", jprune.__version__)
    text = (ROOT / "pyproject.toml").read_text()
    assert jprune.__version__ not in text
    assert (ROOT / "jprune" / "py.typed").exists()


def test_the_page_of_primitives_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "print_primitives.py"))
    written = script["PAGE"].read_text(encoding="utf-8")
    assert written == script["page"]() + "\n"
