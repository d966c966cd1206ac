"""The package as a whole: what it imports, exports and documents."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import jprune

ROOT = pathlib.Path(__file__).parent.parent

FAMILIES = [
    "jprune",
    "jprune.allocations",
    "jprune.compaction",
    "jprune.criteria",
    "jprune.models",
    "jprune.plot",
    "jprune.projections",
    "jprune.report",
    "jprune.selection",
    "jprune.structures",
    "jprune.transforms",
]

LAYERS = [
    ("_typing", "_jax", "_calls", "_tables", "_trees", "_paths", "_describe"),
    ("_checks", "_where"),
    ("_counts", "_layout"),
    ("_plan", "_pooling"),
    ("_ranking",),
    ("masks",),
    ("_keys",),
    ("_kernels",),
    ("_search",),
    ("_divide",),
    ("selection", "_straight_through"),
    ("criteria", "structures", "allocations", "projections"),
    ("_budget", "_method"),
    ("_amounts",),
    ("_find",),
    ("transforms",),
    ("compaction",),
    ("report",),
    ("models", "plot"),
]


def test_import_is_light() -> None:
    code = """
import sys, time
import jax, optax
before = time.perf_counter()
import jprune
took = time.perf_counter() - before
heavy = {"flax", "chex", "sklearn", "matplotlib", "scipy.optimize", "tqdm"}
print(sorted(heavy & set(sys.modules)), took)
"""
    plain = "import sys, jax, optax; print(sorted(" + (
        "{'flax', 'chex', 'sklearn', 'matplotlib', 'scipy.optimize', 'tqdm'}"
        " & set(sys.modules)))"
    )
    with_jprune = subprocess.check_output(
        [sys.executable, "-c", code], text=True
    )
    without = subprocess.check_output([sys.executable, "-c", plain], text=True)
    loaded, took = re.fullmatch(r"(\[.*\]) (\S+)\n", with_jprune).groups()  # type: ignore[union-attr]
    assert loaded == without.strip()
    assert "flax" not in loaded
    assert float(took) < 5  # the aim is .5; a busy machine decides no test


def test_imports_run_one_way() -> None:
    rank = {name: i for i, names in enumerate(LAYERS) for name in names}
    seen = set()
    for file in (ROOT / "jprune").rglob("*.py"):
        name = file.relative_to(ROOT / "jprune").parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module == "jprune":
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                modules = [parts[1]] if parts[0] == "jprune" else []
                assert "_src" not in parts, f"{file}: {node.module}"
            for module in modules:
                if module != name:
                    assert rank[module] <= rank[name], f"{name} <- {module}"
    assert seen == set(rank)


@pytest.mark.parametrize("name", FAMILIES)
def test_api_page_lists_what_is_exported(name: str) -> None:
    module = importlib.import_module(name)
    page = name.rpartition(".")[2]
    text = (ROOT / "docs" / "api" / f"{page}.md").read_text()
    listed = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.M)
    exported = [n for n in module.__all__ if n not in ("jprune", *_modules())]
    if name == "jprune":  # these have pages of their own
        others = (*jprune.transforms.__all__, *jprune.compaction.__all__)
        exported = [n for n in exported if n not in others]
    assert sorted(listed) == sorted(exported)
    for public in module.__all__:
        assert getattr(module, public).__doc__, public


def _modules() -> list[str]:
    return [name.rpartition(".")[2] for name in FAMILIES]


def test_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", jprune.__version__)
    project = (ROOT / "pyproject.toml").read_text()
    assert jprune.__version__ not in project
    assert (ROOT / "jprune" / "py.typed").exists()
