"""What all tests share: eight CPU devices, so that meshes are real."""

import gc
import os
from collections import Counter
from collections.abc import Iterator

# JAX factorises matrices by OpenBLAS. Its threads spin while they wait, which
# makes it many times as slow while other processes use the same cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

# Twice as many as are used: the CPU client has as many threads as devices, and
# with none to spare its collectives may wait for each other forever.
jax.config.update("jax_num_cpu_devices", 16)

# JAX's programs are many objects that stay; by default they are walked so often
# that it takes a fifteenth of the time.
gc.set_threshold(50_000)

# What modules compute as they are imported, and doctests.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a ``sweep(n)`` every n-th is run, and the others slow."""
    seen: Counter[str] = Counter()
    for item in items:
        sweep = item.get_closest_marker("sweep")
        if sweep is not None:
            name = item.nodeid.partition("[")[0]
            if seen[name] % sweep.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Gets one entry for each program that is compiled."""
    heard: list[str] = []

    def listen(event: str, duration_secs: float, **more: str | int) -> None:
        del duration_secs, more
        if "backend_compile" in event:
            heard.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield heard
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Few optimisations, unless the test is slow, heavy or `optimized`.

    Most of the suite's time is compilation. Those that look at memory, at the
    program or at the last bit are `optimized`: compiled as a user's programs.
    Cases of a sweep that are slow are compiled as the others of it.
    """
    marked = request.node.get_closest_marker
    quick = not marked("optimized") and (
        marked("sweep") is not None or not (marked("slow") or marked("heavy"))
    )
    jax.config.update("jax_disable_most_optimizations", quick)
    yield quick
    jax.config.update("jax_disable_most_optimizations", True)
