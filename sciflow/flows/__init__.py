"""Normalizing flows, one constructor for each architecture.

- :class:`NSF`: neural splines, by coupling or ``autoregressive=True``; ``periodic`` features. The one to begin with.
- :class:`NICE`, :class:`RealNVP`: additive and affine coupling; of vectors and fields.
- :class:`Glow`: actnorm, invertible mixing, affine coupling; of vectors and fields, those at several scales.
- :class:`MAF`, :class:`IAF`: affine autoregression, fast to evaluate and fast to draw from.
- :class:`ResidualFlow`: the identity plus a contraction, all features at once.
- :class:`TransformerFlow`: affine autoregression by a causal transformer, over features or patches of a field.
- :class:`VariationalFlow`: what :func:`sciflow.inference.fit_posterior` fits.
- :class:`MixtureOfFlows`: several of the above, each of its own weight, for modes that lie apart.
- :class:`ContinuousFlow`: drift to noise along a learned velocity; any network, and log p by an ODE.

Each but the last two is a :class:`Flow`, and all are a :class:`sciflow.Density`: ``log_prob``, ``likelihood``,
``sample``, ``encode``, ``decode``, ``save``. ``Flow(transform, event_shape, ...)`` makes one of any bijection of
:mod:`sciflow.bijections`.
"""

from sciflow.flows.continuous_flow import ContinuousFlow
from sciflow.flows.flow import Flow
from sciflow.flows.glow import Glow
from sciflow.flows.iaf import IAF
from sciflow.flows.maf import MAF
from sciflow.flows.mixture_of_flows import MixtureOfFlows
from sciflow.flows.nice import NICE
from sciflow.flows.nsf import NSF
from sciflow.flows.realnvp import RealNVP
from sciflow.flows.reparametrised import Reparametrised
from sciflow.flows.residual_flow import ResidualFlow
from sciflow.flows.transformer_flow import TransformerFlow
from sciflow.flows.variational_flow import VariationalFlow

__all__ = [
    "IAF",
    "MAF",
    "NICE",
    "NSF",
    "ContinuousFlow",
    "Flow",
    "Glow",
    "MixtureOfFlows",
    "RealNVP",
    "Reparametrised",
    "ResidualFlow",
    "TransformerFlow",
    "VariationalFlow",
]
