"""Why a row is flagged: what each of its elements adds to the score, and the nearest row that would not be."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sciflow.anomaly.boxes import Boxes
from sciflow.anomaly.edits import EDITS, edits
from sciflow.anomaly.scores.base import Score, values_at_a_time

__all__ = ["attribution", "nearest_typical"]

_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_VALUES_AT_A_TIME = 1 << 22
# Of what a score is above usual, that edits may leave to explain.
_UNEXPLAINED = 0.5
# Points on the way from a typical row to this one; and how finely noise is clipped: by eighths, of eighths, of eighths.
_STEPS, _LEVELS, _ROUNDS = 16, 8, 3


def attribution(score: Score, x: Tensor, context: Tensor | None, typical: Tensor, usual: float) -> Tensor:
    r"""Return what every element of a row adds to its score.

    As little of the row is edited as makes it like the normal rows next to it, a little more at a time (see
    :func:`sciflow.anomaly.edits.edits`), and what the score falls by from one edit to the next goes to the elements
    that were moved there, by the squares of how far they have been:

    .. math:: a_j(x) = \sum_k \left( s_{k-1} - s_k \right) \frac{(\delta_{jk}^2 - \delta_{j,k-1}^2)_+}
              {\sum_i (\delta_{ik}^2 - \delta_{i,k-1}^2)_+}, \qquad
              s_k = \max \left( \min_{i \le k} s(x^{(i)}), \text{usual} \right)

    so that they add up to what the score is above usual. It takes 17 scores a row. Where it is known what was changed,
    it has 0.84 of the attribution on nine tables and 0.91 on windows of series and on fields; by the last rule below it
    has 0.65 and 0.62 (``tests/benchmarks/anomaly.py attributions``).

    Of rows with a context, those next to a row are not known: there are others for every context. Scores that have
    gradients are followed from the nearest typical row :math:`x^*` to the row, and every element gets what the score
    rises by along it (integrated gradients, Sundararajan et al., arXiv:1703.01365):

    .. math:: a_j(x) = (x_j - x^*_j) \int_0^1 \frac{\partial s}{\partial x_j} (x^* + \lambda (x - x^*)) \, d\lambda,
              \qquad \sum_j a_j(x) = s(x) - s(x^*)

    Of others, and where no edit takes a score half of the way to a usual one, it is how far the score falls when this
    element alone becomes one of its usual values :math:`q_{jk}`,

    .. math:: a_j(x) = s(x) - \min_k s(x_1, \dots, q_{jk}, \dots, x_d)

    Events of more than 256 elements are edited box by box, and every element of a box gets the same. Scores that know
    of themselves where a row is odd say so instead, such as the denoising error of a pixel.

    Args:
        score: Of the detector.
        x: ``[n, *event_shape]``.
        context: ``[n, *context_shape]`` or None.
        typical: Normal rows ``[m, *event_shape]``, see :func:`sciflow.anomaly.edits.typical_rows`.
        usual: A score that normal rows have.

    Returns:
        ``[n, *event_shape]``, in the unit of the score, float64, and finite.
    """
    typical = typical.to(x.device)
    own = score.attribution(x, context)
    if own is not None:
        found = own
    elif context is None:
        found = _by_edits(score, x, typical, usual)
    elif score.has_gradient:
        found = _along(score, x, context, typical, usual)
    else:
        found = _by_replacement(score, x, context, typical)
    return _finite(found)


def nearest_typical(score: Score, x: Tensor, context: Tensor | None, typical: Tensor, usual: float) -> Tensor:
    """Return events near by whose score is usual: what would have to be otherwise.

    Of a score that stands on a density, a row's noise is clipped, as little as makes the score of what it decodes to no
    more than ``usual``: what is extreme is edited, and what is not stays as it is. Where there is no density, or even
    the middle of the noise is unusual, it is the smallest of the row's edits that is usual (see
    :func:`sciflow.anomaly.edits.edits`), and else the nearest of the normal rows. Rows that are usual stay as they are.

    Args:
        score: Of the detector.
        x: ``[n, *event_shape]``.
        context: ``[n, *context_shape]`` or None.
        typical: Normal rows ``[m, *event_shape]``, see :func:`sciflow.anomaly.edits.typical_rows`.
        usual: A score that normal rows have.

    Returns:
        ``[n, *event_shape]``; NaN where none is found, as of rows with a context the noise alone is asked.
    """
    typical = typical.to(x.device)
    found = torch.where((score(x, context) <= usual).reshape(-1, *[1] * (x.ndim - 1)), x, torch.nan)
    ways = [_clipped] if score.all_densities() else []
    ways += [_least_edited, _nearest] if context is None else []
    for way in ways:
        missing = found.isnan().flatten(1).any(1) & x.isfinite().flatten(1).all(1)
        if missing.any():
            found[missing] = way(score, x[missing], None if context is None else context[missing], typical, usual)
    return found


def _along(score: Score, x: Tensor, context: Tensor | None, typical: Tensor, usual: float) -> Tensor:
    start = nearest_typical(score, x, context, typical, usual)
    middle = typical.median(0).values.expand_as(x)
    known = torch.isfinite(start).flatten(1).all(1)
    start = torch.where(known.reshape(-1, *[1] * (x.ndim - 1)), start, middle)
    total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for way in ((torch.arange(_STEPS, device=x.device) + 0.5) / _STEPS).split(_at_once(x)):
        points = start + way.to(x.dtype).reshape(-1, *[1] * x.ndim) * (x - start)
        gradient = score.gradient(points.flatten(0, 1), _each(context, len(way))).double().nan_to_num(0.0, 0.0, 0.0)
        total += gradient.reshape(points.shape).sum(0)
    return total * (x - start).double() / _STEPS


def _by_edits(score: Score, x: Tensor, typical: Tensor, usual: float) -> Tensor:
    boxes, _ = _boxed(typical)

    def falls(rows: Tensor) -> Tensor:
        variants, sizes = _variants(rows, typical)
        before = _finite(score(rows))
        after = _finite(score(variants.flatten(0, 1)).nan_to_num(torch.inf)).reshape(EDITS, len(rows))
        lowest = torch.cat([before[None], after]).cummin(0).values.clamp_min(usual)
        growth = sizes.square().diff(dim=0, prepend=torch.zeros_like(sizes[:1])).clamp_min(0)
        shares = growth / growth.sum(2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        found = boxes.spread((-lowest.diff(dim=0)[..., None] * shares).sum(0))
        unexplained = lowest[-1] - usual > _UNEXPLAINED * (before - usual).clamp_min(0)
        if unexplained.any():
            found[unexplained] = _by_replacement(score, rows[unexplained], None, typical)
        return found

    at_once = max(1, _VALUES_AT_A_TIME // (EDITS * max(1, x.shape[1:].numel())))
    return torch.cat([falls(rows) for rows in x.split(at_once)])


def _by_replacement(score: Score, x: Tensor, context: Tensor | None, typical: Tensor) -> Tensor:
    boxes, _ = _boxed(typical)
    usual = _quantiles(typical)
    before = score(x, context)
    falls = torch.zeros(len(x), boxes.count, dtype=torch.float64, device=x.device)
    at_once = max(1, _VALUES_AT_A_TIME // (len(usual) * max(1, x.shape[1:].numel())))
    for pairs in torch.arange(falls.numel(), device=x.device).split(at_once):
        rows, some = pairs // boxes.count, pairs % boxes.count
        inside = boxes.number == some.reshape(-1, *[1] * boxes.number.ndim)
        changed = torch.where(inside[:, None], usual, x[rows][:, None]).flatten(0, 1)
        of_rows = None if context is None else context[rows].repeat_interleave(len(usual), 0)
        after = score(changed, of_rows).reshape(len(pairs), len(usual)).nan_to_num(torch.inf).amin(1)
        falls[rows, some] = before[rows] - after
    return boxes.spread(falls.clamp_min(0))


def _variants(rows: Tensor, typical: Tensor) -> tuple[Tensor, Tensor]:
    """Edits of rows ``[k, n, *event_shape]``, and by how much each of their boxes was moved, ``[k, n, num_boxes]``."""
    boxes, normal = _boxed(typical)
    means = boxes.means(rows)
    edited, sizes = edits(means, normal)
    # Elements of a box are moved together, and keep what sets them apart.
    moved = (boxes.spread(edited) + (rows - boxes.spread(means))).to(rows.dtype)
    return torch.where(boxes.spread(sizes) == 0, rows, moved), sizes


@lru_cache(maxsize=2)
def _boxed(typical: Tensor) -> tuple[Boxes, Tensor]:
    """Boxes of events, and the means of normal rows over them; kept for rows that are asked of later."""
    boxes = Boxes.of(typical.shape[1:], typical.device)
    return boxes, boxes.means(typical)


def _quantiles(rows: Tensor) -> Tensor:
    """What elements of rows usually are, ``[5, *event_shape]``."""
    ordered = rows.sort(0).values
    return ordered[[round(share * (len(ordered) - 1)) for share in _QUANTILES]]


def _clipped(score: Score, x: Tensor, context: Tensor | None, typical: Tensor, usual: float) -> Tensor:
    """What rows decode to whose noise is clipped, ``[n, *event_shape]``; NaN where that is never usual."""
    density = score.all_densities()[0]
    with torch.no_grad():
        z = density.encode(x, context)

        def clipped(limits: Tensor) -> tuple[Tensor, Tensor]:
            """Events, and whether they are usual, of limits ``[k, n]``."""
            limits = limits.reshape(*limits.shape, *[1] * (z.ndim - 1))
            of_each = _each(context, len(limits))
            events = density.decode(z.clamp(-limits, limits).flatten(0, 1), of_each)
            is_usual = score(events, of_each) <= usual
            return events.reshape(limits.shape[:2] + z.shape[1:]), is_usual.reshape(limits.shape[:2])

        low, width = z.new_zeros(len(z)), z.flatten(1).abs().amax(1)
        for _ in range(_ROUNDS):
            width = width / _LEVELS
            levels = torch.arange(1, _LEVELS, dtype=z.dtype, device=z.device)
            is_usual = torch.cat([clipped(low + some[:, None] * width)[1] for some in levels.split(_at_once(x))])
            # The largest of them: as little is edited as can be.
            low = low + width * (is_usual * levels[:, None]).amax(0)
        edited, is_usual = (found[0] for found in clipped(low[None]))
        return torch.where(is_usual.reshape(-1, *[1] * (x.ndim - 1)), edited, torch.nan)


def _least_edited(score: Score, x: Tensor, context: Tensor | None, typical: Tensor, usual: float) -> Tensor:
    """The smallest edits of rows that are usual; NaN where none is."""
    variants, _ = _variants(x, typical)
    is_usual = (score(variants.flatten(0, 1)) <= usual).reshape(variants.shape[:2])
    first = is_usual.long().argmax(0)
    found = variants[first, torch.arange(len(x), device=x.device)]
    return torch.where(is_usual.any(0).reshape(-1, *[1] * (x.ndim - 1)), found, torch.nan)


def _nearest(score: Score, x: Tensor, context: Tensor | None, typical: Tensor, usual: float) -> Tensor:
    """The nearest normal rows that are usual, in standard deviations of each number; NaN where none is."""
    usual_ones = typical[score(typical) <= usual]
    if not len(usual_ones):
        return torch.full_like(x, torch.nan)
    scale = typical.flatten(1).double().std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    apart = torch.cdist(x.flatten(1).double() / scale, usual_ones.flatten(1).double() / scale)
    return usual_ones[apart.argmin(1)].to(x.dtype)


def _at_once(x: Tensor) -> int:
    """How many variants of rows are computed together."""
    return max(1, values_at_a_time(x.device) // max(1, x.numel()))


def _each(context: Tensor | None, times: int) -> Tensor | None:
    """Contexts of as many variants of all rows, one variant after the other."""
    return None if context is None else context.expand(times, *context.shape).flatten(0, 1)


def _finite(falls: Tensor) -> Tensor:
    """What is infinite is as much as single precision holds; from one infinity to the next, nothing falls."""
    largest = torch.finfo(torch.float32).max
    return falls.nan_to_num(0.0, largest, -largest).clamp(-largest, largest)
