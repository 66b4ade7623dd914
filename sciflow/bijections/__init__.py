"""Invertible maps with their log-determinants; ``forward`` goes from data to noise."""

from sciflow.bijections.actnorm import ActNorm, initialise
from sciflow.bijections.affine import Affine
from sciflow.bijections.autoregressive import Autoregressive, inverse_by
from sciflow.bijections.base import Bijection
from sciflow.bijections.composite import Composite
from sciflow.bijections.coupling import Coupling
from sciflow.bijections.elementwise import Elementwise
from sciflow.bijections.field import OnFirstChannels, Pointwise, Squeezed, squeezed_shape
from sciflow.bijections.field_coupling import FieldCoupling
from sciflow.bijections.identity import Identity
from sciflow.bijections.inverted import Inverted
from sciflow.bijections.linear import LULinear, Permutation
from sciflow.bijections.normal_scores import NormalScores
from sciflow.bijections.preprocess import (
    Angles,
    Dequantize,
    Log,
    Log1p,
    Logit,
    Preprocessor,
    Rescale,
    Standardize,
    VariationalDequantize,
    preprocessing,
)
from sciflow.bijections.preprocess.contexts import EachContext, context_preprocessing
from sciflow.bijections.residual import Residual
from sciflow.bijections.scale import Scale
from sciflow.bijections.some import OnSome
from sciflow.bijections.spline import rational_quadratic_spline, rational_quadratic_spline_inverse
from sciflow.bijections.transformer import TransformerAutoregressive
from sciflow.bijections.univariate import CircularSpline, EachItsOwn, InTurn, Shift, ShiftScale, Spline, Univariate

__all__ = [
    "ActNorm",
    "Affine",
    "Angles",
    "Autoregressive",
    "Bijection",
    "CircularSpline",
    "Composite",
    "Coupling",
    "Dequantize",
    "EachContext",
    "EachItsOwn",
    "Elementwise",
    "FieldCoupling",
    "Identity",
    "InTurn",
    "Inverted",
    "LULinear",
    "Log",
    "Log1p",
    "Logit",
    "NormalScores",
    "OnFirstChannels",
    "OnSome",
    "Permutation",
    "Pointwise",
    "Preprocessor",
    "Rescale",
    "Residual",
    "Scale",
    "Shift",
    "ShiftScale",
    "Spline",
    "Squeezed",
    "Standardize",
    "TransformerAutoregressive",
    "Univariate",
    "VariationalDequantize",
    "context_preprocessing",
    "initialise",
    "inverse_by",
    "preprocessing",
    "rational_quadratic_spline",
    "rational_quadratic_spline_inverse",
    "squeezed_shape",
]
