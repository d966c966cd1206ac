"""What all tests share: eight CPU devices, so that meshes are real."""

from collections.abc import Iterator

import jax
import pytest

# Twice as many as are used: the CPU client has as many threads as devices, and
# with none to spare its collectives may wait for each other forever.
jax.config.update("jax_num_cpu_devices", 16)


@pytest.fixture
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles with few optimisations, unless the test is slow or heavy.

    Half of the suite's time is compilation. For tests of semantics; those that
    compare bits or memory go without.
    """
    quick = not any(map(request.node.get_closest_marker, ("slow", "heavy")))
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
