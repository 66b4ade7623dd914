"""Invertible maps with their log-determinants; ``forward`` goes from data to noise."""

from sciflow.bijections.affine import Affine
from sciflow.bijections.base import Bijection
from sciflow.bijections.composite import Composite
from sciflow.bijections.coupling import Coupling
from sciflow.bijections.identity import Identity
from sciflow.bijections.linear import LULinear, Permutation
from sciflow.bijections.preprocess import Dequantize, Log1p, Logit, Preprocessor, Standardize, preprocessing
from sciflow.bijections.spline import rational_quadratic_spline, rational_quadratic_spline_inverse
from sciflow.bijections.univariate import Shift, ShiftScale, Spline, Univariate

__all__ = [
    "Affine",
    "Bijection",
    "Composite",
    "Coupling",
    "Dequantize",
    "Identity",
    "LULinear",
    "Log1p",
    "Logit",
    "Permutation",
    "Preprocessor",
    "Shift",
    "ShiftScale",
    "Spline",
    "Standardize",
    "Univariate",
    "preprocessing",
    "rational_quadratic_spline",
    "rational_quadratic_spline_inverse",
]
