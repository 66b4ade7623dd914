"""Named normalizing flows."""

from sciflow.flows.flow import Flow
from sciflow.flows.nsf import NSF

__all__ = ["NSF", "Flow"]
