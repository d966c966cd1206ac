"""Reads from a function's jaxpr what it does with its parameters."""

from jprune._core.products import Products as Products
from jprune._core.products import Use as Use
from jprune.jaxprs.products import trace_products as trace_products

__all__ = ["Products", "Use", "trace_products"]
