"""Networks: what bijections and denoisers are conditioned by."""

from sciflow.nets.mlp import ResidualMLP

__all__ = ["ResidualMLP"]
