"""Classifier two-sample test: how often a network tells draws of two distributions apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.errors import DataError, ShapeError
from sciflow.inference.diagnostics import words
from sciflow.inference.diagnostics.cases import checked, parameter_names
from sciflow.inference.diagnostics.rows import finite
from sciflow.report.drawing import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["C2ST", "c2st"]

_NUM_FOLDS = 5
FEWEST_ROWS = 50
# In standard deviations and as a ratio: below them a parameter's mean and width are called the same.
_SHIFT, _RATIO = 0.1, 1.1


@dataclass(frozen=True, eq=False, repr=False)
class C2ST:
    """How well two samples are told apart.

    Attributes:
        value: Accuracy on rows not trained on: 0.5 where nothing tells them apart, 1 where everything does.
        error: Standard error of it, as far as it comes from the number of rows.
        folds: ``[5]``, the accuracy of each fold.
        p_value: Of the hypothesis that the samples come from one distribution.
        level: At which they are called different.
        verdict: In words: which parameters differ, and how.
        names: Of the parameters.
        p: ``[n, d]``, the first sample.
        q: ``[m, d]``, the second.
    """

    value: float
    error: float
    folds: Floats
    p_value: float
    level: float
    verdict: str
    names: tuple[str, ...] = field(repr=False)
    p: Floats = field(repr=False)
    q: Floats = field(repr=False)

    @property
    def passed(self) -> bool:
        """They are not told apart at :attr:`level`."""
        return self.p_value > self.level

    def plot(self) -> Figure:
        """Draw the distribution of every parameter in both samples."""
        from sciflow.inference.diagnostics.figures import marginals

        return marginals(
            self.p, self.q, self.names, ("first sample", "second sample"), f"C2ST {self.value:.3f}: {self.verdict}"
        )

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"C2ST({self.value:.3f} +- {self.error:.3f}: {self.verdict})"


def c2st(p: Any, q: Any, *, seed: int = 1, names: Sequence[str] | None = None, level: float = 0.05) -> C2ST:
    """Train networks to tell draws of ``p`` from draws of ``q``, and see how often they are right on others.

    The protocol of sbibm, so that values compare with published ones: mean accuracy of five folds, a perceptron with
    two hidden layers of 10 d rectified units, trained by Adam; both samples standardised by the first. There, ``p`` is
    the reference and ``q`` the approximation, 10,000 draws of each.

    Args:
        p: ``[n, d]``.
        q: ``[m, d]``, n = m if 0.5 is to mean that they are alike.
        seed: Of folds and networks.
        names: Of the parameters.
        level: At which the samples are called different.

    Raises:
        ShapeError: The samples do not have as many parameters, or not as many rows.
        DataError: Values are missing, a parameter never varies in ``p``, or there are too few rows.

    Source: Lopez-Paz and Oquab, arXiv:1610.06545; Lueckmann et al., arXiv:2101.04653.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p, q = rng.normal(size=(500, 2)), rng.normal(size=(500, 2)) + [1.0, 0.0]
        >>> found = c2st(p, q)
        >>> found.passed, 0.6 < found.value < 0.75
        (False, True)
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    seed, level = checked("c2st", seed, level)
    first, second, labels = _samples(p, q, names)
    centre, scale = first.mean(0), first.std(0, ddof=1)
    rows = (np.concatenate([first, second]) - centre) / scale
    which = np.repeat([0.0, 1.0], [len(first), len(second)])
    width = 10 * first.shape[1]
    classifier = MLPClassifier(
        activation="relu",
        hidden_layer_sizes=(width, width),
        max_iter=10_000,
        solver="adam",
        random_state=seed % 2**32,
    )
    folds = KFold(n_splits=_NUM_FOLDS, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        accuracies = cross_val_score(classifier, rows.astype(np.float32), which, cv=folds, scoring="accuracy")
    value = float(np.mean(accuracies))
    error = math.sqrt(max(value * (1 - value), 0.25 / len(rows)) / len(rows))
    p_value = 0.5 * math.erfc((value - 0.5) * math.sqrt(2 * len(rows)))
    verdict = _verdict(first, second, labels, p_value, level)
    return C2ST(value, error, np.asarray(accuracies), p_value, level, verdict, labels, first, second)


def differences(p: Floats, q: Floats, names: Sequence[str]) -> list[str]:
    """Name the parameters whose mean or width in ``q`` is not what it is in ``p``, the gravest first.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p, q = rng.normal(size=(2, 4000, 2))
        >>> differences(p, q * [1.0, 0.5], ["a", "b"])
        ['b is 0.5 times as wide']
    """
    told = []
    scale, other = p.std(0), q.std(0)
    for place, name in enumerate(names):
        shift = (q[:, place].mean() - p[:, place].mean()) / scale[place]
        ratio = other[place] / scale[place]
        error = math.sqrt(1 / len(p) + ratio**2 / len(q))
        words_ = []
        if abs(shift) > max(_SHIFT, 3 * error):
            words_.append(f"{'higher' if shift > 0 else 'lower'} by {abs(shift):.2g} standard deviations")
        if max(ratio, 1 / max(ratio, 1e-9)) > max(_RATIO, 1 + 3 * error):
            words_.append(f"{ratio:.2g} times as wide")
        if words_:
            told.append((abs(shift) + abs(math.log(max(ratio, 1e-9))), f"{name} is {' and '.join(words_)}"))
    return [text for _, text in sorted(told, reverse=True)]


def _verdict(p: Floats, q: Floats, names: Sequence[str], p_value: float, level: float) -> str:
    told = f"p = {p_value:.2g}"
    if p_value > level:
        return f"not told apart, as far as {len(p):,} draws of each tell ({told})"
    different = differences(p, q, names)
    if not different:
        return f"told apart, though means and widths agree: look at shapes and correlations ({told})"
    return f"told apart: in the second sample {words.enumerated(different)} ({told})"


def _samples(p: Any, q: Any, names: Sequence[str] | None) -> tuple[Floats, Floats, tuple[str, ...]]:
    first, second = finite(p, "c2st: first sample"), finite(q, "c2st: second sample")
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or first.shape[1] == 0:
        raise ShapeError(
            f"c2st: samples are [n, d] with the same d, got {list(first.shape)} and {list(second.shape)}; for one "
            "parameter, draws[:, None]"
        )
    if len(first) != len(second):
        raise ShapeError(
            f"c2st: {len(first):,} and {len(second):,} rows; 0.5 means alike only of samples of one size: take as many "
            "of each"
        )
    if len(first) < FEWEST_ROWS:
        raise DataError(
            f"c2st: {len(first)} rows of each are too few to train on; give at least {FEWEST_ROWS}, better 10,000"
        )
    labels = parameter_names(names, first.shape[1], "c2st")
    still = [name for name, spread in zip(labels, np.ptp(first, axis=0), strict=True) if spread == 0]
    if still:
        raise DataError(f"c2st: {', '.join(still)} never varies in the first sample: leave it out of both")
    return first, second, labels
