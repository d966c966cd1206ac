"""What is left of a cost when so much of each pool is: a polynomial, as data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Polynomial(NamedTuple):
    r"""A cost as a function of the shares of units that pools keep.

    With shares :math:`s_p` it is :math:`\sum_t c_t \prod_{p \in t} s_p`, because the
    size of an array is the product of the lengths of its axes, and the cost of a product
    is that of the lengths of all axes involved.
    """

    amounts: np.ndarray  # float64 [terms]: what each costs if nothing is gone
    # int32 [terms, degree]: the pools of each; the number of pools is none.
    pools: np.ndarray

    @property
    def whole(self) -> float:
        """The cost if nothing is removed."""
        return float(self.amounts.sum())

    def at(self, shares: np.ndarray) -> np.ndarray:
        """Computes the cost, float64 ``[...]``, at shares ``[..., pools]``."""
        one = np.ones((*shares.shape[:-1], 1))
        shares = np.concatenate([shares, one], -1)
        found = np.broadcast_to(1.0, (*shares.shape[:-1], len(self.amounts)))
        for column in self.pools.T:
            found = found * shares[..., column]
        result: np.ndarray = found @ self.amounts
        return result

    def fraction(self, shares: jax.Array, whole: float) -> jax.Array:
        """The same of JAX's numbers, as a fraction of some cost."""
        factors: Any = jnp.append(shares, 1.0)[self.pools]
        return jnp.sum(self.amounts / whole * jnp.prod(factors, -1))


Polynomial.__module__ = "jprune.search"  # where users find it
