"""Reports: what a model costs."""

from jprune.report._cost import Cost as Cost
from jprune.report._cost import Count as Count
from jprune.report._cost import cost as cost

__all__ = ["Cost", "Count", "cost"]
