"""Named normalizing flows."""

from sciflow.flows.flow import Flow
from sciflow.flows.glow import Glow
from sciflow.flows.iaf import IAF
from sciflow.flows.maf import MAF
from sciflow.flows.nice import NICE
from sciflow.flows.nsf import NSF
from sciflow.flows.realnvp import RealNVP
from sciflow.flows.residual_flow import ResidualFlow
from sciflow.flows.transformer_flow import TransformerFlow

__all__ = ["IAF", "MAF", "NICE", "NSF", "Flow", "Glow", "RealNVP", "ResidualFlow", "TransformerFlow"]
