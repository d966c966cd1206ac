"""Flax models for the examples. ``import jprune.models`` imports Flax."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
from flax import linen as nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron: dense layers with an activation between them.

    Attributes:
      features: Number of outputs of each layer; the last are the model's outputs.
      activation: Applied after every layer but the last.

    >>> import jax, jax.numpy as jnp
    >>> from jprune.models import MLP
    >>> model = MLP((10, 10, 3))
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> model.apply(params, jnp.ones((5, 4))).shape
    (5, 3)
    """

    features: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., inputs]`` to ``[..., features[-1]]``."""
        for size in self.features[:-1]:
            x = self.activation(nn.Dense(size)(x))
        return nn.Dense(self.features[-1])(x)

    @classmethod
    def from_params(
        cls,
        params: Mapping[str, Any],
        activation: Callable[[jax.Array], jax.Array] = nn.relu,
    ) -> Self:
        """Makes the module that ``params`` belong to, with their sizes.

        Args:
          params: Parameters of an :class:`MLP`, with or without the outer
            ``{"params": ...}``.
          activation: The activation, which the parameters do not contain.

        Raises:
          ValueError: The parameters are not those of an MLP.

        >>> from jprune.models import MLP
        >>> import jax, jax.numpy as jnp
        >>> variables = MLP((7, 2)).init(jax.random.key(0), jnp.ones((1, 4)))
        >>> MLP.from_params(variables).features
        (7, 2)
        """
        layers = nn.meta.unbox(params.get("params", params))
        names = [f"Dense_{i}" for i in range(len(layers))]
        if not names or set(names) != set(layers):
            raise ValueError(
                "`MLP.from_params(params)` expects layers Dense_0, Dense_1, "
                f"..., got {sorted(layers)}."
            )
        sizes = [layers[name]["kernel"].shape for name in names]
        for name, (_, outputs), (inputs, _) in zip(
            names, sizes, sizes[1:], strict=False
        ):
            if outputs != inputs:
                raise ValueError(
                    f"`MLP.from_params(params)`: {name} has {outputs} outputs, "
                    f"the next layer {inputs} inputs."
                )
        return cls(tuple(outputs for _, outputs in sizes), activation)
