"""Networks: what bijections and denoisers are conditioned by."""

from sciflow.nets.convolution import ResidualConvolution
from sciflow.nets.denoising_mlp import DenoisingMLP
from sciflow.nets.diffusion_transformer import DiffusionTransformer
from sciflow.nets.lipschitz import LipschitzMLP
from sciflow.nets.made import MADE
from sciflow.nets.mlp import ResidualMLP
from sciflow.nets.transformer import CausalTransformer
from sciflow.nets.unet import UNet

__all__ = [
    "MADE",
    "CausalTransformer",
    "DenoisingMLP",
    "DiffusionTransformer",
    "LipschitzMLP",
    "ResidualConvolution",
    "ResidualMLP",
    "UNet",
]
