"""Networks: what bijections and denoisers are conditioned by."""

from sciflow.nets.convolution import ResidualConvolution
from sciflow.nets.lipschitz import LipschitzMLP
from sciflow.nets.made import MADE
from sciflow.nets.mlp import ResidualMLP
from sciflow.nets.transformer import CausalTransformer

__all__ = ["MADE", "CausalTransformer", "LipschitzMLP", "ResidualConvolution", "ResidualMLP"]
