"""What a detector does with normal rows: holds some out, trains what the score stands on, and fits the score."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.anomaly.edits import typical_rows
from sciflow.anomaly.given import Given, Part
from sciflow.anomaly.overlap import are_known, row_hashes
from sciflow.anomaly.recipe import FEW_ROWS, default_score, smoothed
from sciflow.anomaly.scores import Ensemble, Score, build
from sciflow.arrays import numbers
from sciflow.data.layout import Layout
from sciflow.data.store import Split, Store
from sciflow.density import Density
from sciflow.errors import ConfigError, DataError
from sciflow.families import build as build_density
from sciflow.training.fit import fit
from sciflow.training.rows import as_floats

__all__ = ["Fitted", "LeftOut", "density_of", "fitted"]

# Shares of the rows that judge the training, and that calibrate; of very many rows no more is needed.
_JUDGE, _CALIBRATE, _MOST = 0.1, 0.2, 20_000
_LEAST_ROWS = 10
_ROWS_OF_STORE = 1 << 16
# Of the flow that is trained where nothing is said.
_SMOOTHED, _STEPS = 20_000, 600
_SEVERAL = 0.05
_LOST = 1e-4


@dataclass(frozen=True)
class Fitted:
    """What fitting has made.

    Attributes:
        score: The score, ready for use.
        layout: Of the rows; None of arrays.
        typical: Some of the rows that were trained on, see :func:`sciflow.anomaly.edits.typical_rows`.
        usual: The median score of rows that were not trained on.
        hashes: Of the rows that were trained on, or of a sample of them; sorted.
        copies: Share of held-out rows that are copies of such rows, as data on a grid have them.
        inside: Coordinates of an event's axes, see :func:`sciflow.data.inside.inside`.
    """

    score: Score
    layout: Layout | None
    typical: Tensor
    usual: float
    hashes: np.ndarray
    copies: float
    inside: Mapping[str, Sequence[Any]]

    def share_trained_on(self, hashes: Sequence[np.ndarray]) -> float:
        """Return what share of rows was trained on, by their hashes; 0 where it is no more than that of copies."""
        of_rows = np.concatenate([np.empty(0, np.uint64), *hashes])
        share = float(are_known(of_rows, self.hashes).mean()) if len(of_rows) else 0.0
        return share if share > self.copies + _SEVERAL else 0.0

    def warn_of_overlap(self, events: Iterable[Any]) -> None:
        """Warn where rows to calibrate on have been trained on: their scores are too low, and p-values with them."""
        share = self.share_trained_on([row_hashes(some) for some in events])
        if share:
            warnings.warn(
                f"{share:.0%} of the rows to calibrate on are rows that were trained on: their scores are lower than "
                "those of new rows, so that p-values are too small; calibrate on others",
                stacklevel=3,
            )


@dataclass(frozen=True)
class LeftOut:
    """What calibrates where rows are too few to hold some out.

    Attributes:
        scores: ``[n]``, what each row scores by all others; or by those of other blocks.
    """

    scores: np.ndarray


def fitted(
    rows: Given,
    score: Any,
    density: Any,
    training: Mapping[str, Any],
    block: int | None,
    seed: int,
    progress: bool,
) -> tuple[Fitted, Iterable[Part] | LeftOut]:
    """Train, fit the score, and return it with the rows that were held out to calibrate on.

    Of fewer than 100 rows, a score that nothing is trained for is fitted on all, and calibrated by leaving each of them
    out in its turn (the jackknife): ten times as many scores to compare with, and none that depends on a draw. P-values
    are then at least uniform as long as a row more makes scores no higher, which held wherever it was measured; proven
    is no more than twice the level, of a close relative (Barber et al., arXiv:1905.02928).

    Args:
        rows: Normal rows.
        score: Which is wanted, see :func:`sciflow.anomaly.scores.build`; None for that of the rule.
        density: What names stand on; None for what they train by themselves.
        training: Settings of :func:`sciflow.fit`.
        block: Steps of the first dimension that are held out together.
        seed: Of the split, of weights and training.
        progress: Show progress bars.

    Raises:
        DataError: There are too few rows, or some have missing values.
    """
    cut = _of_store(rows, rows.data, seed) if isinstance(rows.data, Store) else _of_rows(rows, block, seed)
    given = density_of(score, density)
    as_floats(np.asarray(cut.train), "float32" if given is None else str(given.dtype).removeprefix("torch."), "events")
    trained: dict[str, Density] = {}

    def of_family(family: str) -> Density:
        if family not in trained:
            trained[family] = _trained(density, family, rows, cut, training, seed, progress)
        return trained[family]

    def on_smoothed(flow: Density) -> Density:
        train, judge = smoothed(cut.train, _SMOOTHED, seed), smoothed(cut.judge, _SMOOTHED // 10, seed + 1)
        settings = {"max_steps": _STEPS, **training}
        with warnings.catch_warnings():
            # What never varies, or lies on a grid, is the others' to judge.
            warnings.filterwarnings("ignore", "element|columns", UserWarning)
            fit(flow, train.astype(np.float32), judge.astype(np.float32), seed=seed, progress=progress, **settings)
        return flow

    if score is not None:
        made = build(score, of_family)
    elif density is not None or cut.train_context is not None:
        made = build("nll", of_family)
    else:
        made = default_score(len(cut.train), tuple(rows.event_shape), seed, on_smoothed)
    densities = made.all_densities()
    if len(cut.train) < FEW_ROWS and cut.blocks is not None and not densities and cut.train_context is None:
        return _few(made, rows, cut)
    made.fit(cut.train, cut.train_context, reference=cut.judge, reference_context=cut.judge_context)
    typical = typical_rows(torch.as_tensor(cut.train, dtype=densities[0].dtype if densities else torch.float32))
    _warn_of_far_values(np.asarray(cut.train), typical.numpy())
    usual = float(made(cut.judge, cut.judge_context).nanmedian())
    hashes = made.seen if isinstance(made, Ensemble) else np.unique(row_hashes(cut.train))
    copies = float(are_known(row_hashes(cut.judge), hashes).mean())
    return Fitted(made, rows.layout, typical, usual, hashes, copies, rows.inside), cut.calibration


def _warn_of_far_values(rows: np.ndarray, typical: np.ndarray) -> None:
    """Warn of elements in which a few values, such as 1e20 for a missing one, are so far out that others look equal."""
    low, high = rows.min(0), rows.max(0)
    spread = np.subtract(*np.quantile(typical.astype(np.float64), (0.9, 0.1), axis=0))
    # The deviation of all is this at the least, if one value alone is far out.
    deviation = np.subtract(high, low, dtype=np.float64) / np.sqrt(len(rows))
    lost = np.argwhere((spread > 0) & (spread < _LOST * deviation))
    if len(lost):
        place = tuple(lost[0])
        furthest = max(low[place], high[place], key=abs)
        others = f" (and so in {len(lost) - 1:,} more elements)" if len(lost) > 1 else ""
        warnings.warn(
            f"element {list(map(int, place))}: four in five values lie within {spread[place]:.2g}, and one is "
            f"{furthest:.2g}{others}: beside it the others are told apart no more; if it stands for a missing value, "
            "leave its row out",
            stacklevel=4,
        )


def density_of(score: Any, density: Any) -> Density | None:
    """Return the density that was handed over, by itself or under a score; None where one is yet to be made."""
    if isinstance(score, Score):
        return next(iter(score.all_densities()), None)
    return next((given for given in (score, density) if isinstance(given, Density)), None)


def _few(score: Score, rows: Given, cut: _Cut) -> tuple[Fitted, LeftOut]:
    """Fit a score on all rows, and score each of them by those of the other blocks."""
    assert cut.blocks is not None
    scores = np.empty(len(cut.blocks))
    for block in np.unique(cut.blocks):
        left_out = cut.blocks == block
        scores[left_out] = score.fit(cut.events[~left_out])(cut.events[left_out]).cpu().numpy()
    score.fit(cut.events)
    hashes, counts = np.unique(row_hashes(cut.events), return_counts=True)
    copies = float(counts[counts > 1].sum() / len(scores))
    typical = typical_rows(torch.as_tensor(cut.events, dtype=torch.float32))
    usual = float(np.nanmedian(scores))
    return Fitted(score, rows.layout, typical, usual, hashes, copies, rows.inside), LeftOut(scores)


@dataclass(frozen=True)
class _Cut:
    """Rows in memory: to train on (of a store a sample of them), to judge by, and, part by part, to calibrate on.

    All of them, in order, and the number of the block that each belongs to, are None of a store.
    """

    train: Any
    train_context: Any
    judge: Any
    judge_context: Any
    calibration: Iterable[Part]
    events: Any = None
    blocks: np.ndarray | None = None


def _of_rows(rows: Given, block: int | None, seed: int) -> _Cut:
    parts = list(rows.parts())
    events = np.concatenate([numbers(part.events) for part in parts])
    contexts = None if parts[0].context is None else np.concatenate([np.asarray(part.context) for part in parts])
    finite = np.isfinite(events).all(tuple(range(1, events.ndim)))
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        raise DataError(
            f"{int((~finite).sum()):,} of {len(events):,} rows to fit on have missing or infinite values, the first is "
            f"row {first}: drop or fill them first"
        )
    if len(events) < _LEAST_ROWS:
        raise DataError(f"{len(events)} rows to fit on: {_LEAST_ROWS} are needed at the least")
    blocks = _blocks(len(events), rows.shape, block)
    judge, calibrate, train = _shares(blocks, seed)

    def taken(places: np.ndarray) -> Any:
        return None if contexts is None else contexts[places]

    held = Part(calibrate, events[calibrate], taken(calibrate))
    return _Cut(events[train], taken(train), events[judge], taken(judge), [held], events, blocks)


def _blocks(n: int, shape: tuple[int, ...], block: int | None) -> np.ndarray:
    """Number of the block that every row belongs to."""
    size = 1 if block is None else block * int(np.prod(shape[1:], dtype=np.int64))
    num_blocks = -(-n // size)
    if num_blocks < 5:
        raise DataError(f"{n:,} rows are {num_blocks} blocks of {size:,}: 5 are needed at the least, to hold some out")
    return np.arange(n) // size


def _shares(blocks: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """Places of the rows to judge by, to calibrate on, and to train on."""
    n, num_blocks, size = len(blocks), int(blocks[-1]) + 1, int(np.count_nonzero(blocks == 0))
    order = np.random.default_rng([seed, num_blocks]).permutation(num_blocks)
    num_judge = max(1, min(_MOST // size, round(num_blocks * (_JUDGE if n >= 1000 else 2 * _JUDGE))))
    num_calibrate = max(1, min(_MOST // size, round(num_blocks * _CALIBRATE)))
    which = np.full(num_blocks, 2)
    which[order[:num_judge]] = 0
    which[order[num_judge : num_judge + num_calibrate]] = 1
    of_row = which[blocks]
    return tuple(np.flatnonzero(of_row == part) for part in range(3))


def _of_store(rows: Given, store: Store, seed: int) -> _Cut:
    if not len(store.test):
        raise DataError(
            f"{store.path}: no test events to calibrate on: shard it with a share of them, such as --split 0.7,0.1,0.2"
        )
    train, judge = (_some(split, seed) for split in (store.train, store.validation))
    return _Cut(*train, *judge, rows.parts(("test",)))


def _some(split: Split, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """As many events of a split as fit well into memory, and their contexts."""
    n = len(split)
    places = np.arange(n)
    if n > _ROWS_OF_STORE:
        places = np.sort(np.random.default_rng([seed, n]).choice(n, _ROWS_OF_STORE, replace=False))
    has_context = split._layout.context_shape is not None
    return split[places].numpy(), split.context[places].numpy() if has_context else None


def _trained(
    density: Any, family: str, rows: Given, cut: _Cut, training: Mapping[str, Any], seed: int, progress: bool
) -> Density:
    """A density, trained: that which is given, or one of a family."""
    if isinstance(density, Density):
        if density.provenance:
            return density
        made = density
    elif density is None or isinstance(density, Mapping | str):
        if isinstance(density, Mapping):
            model = dict(density)
        else:
            model = {"name": density or family}
        shape = None if cut.train_context is None else tuple(cut.train_context.shape[1:])
        made = build_density({"seed": seed, **model}, rows.event_shape, shape)
    else:
        raise ConfigError(f"Detector: density: a density, a name or {{name: nsf, ...}}; got {density!r:.80}")
    if isinstance(rows.data, Store):
        fit(made, rows.data, seed=seed, progress=progress, **training)
        return made
    fit(
        made,
        cut.train,
        cut.judge,
        context=cut.train_context,
        validation_context=cut.judge_context,
        seed=seed,
        progress=progress,
        **training,
    )
    made.layout = None if rows.layout is None else rows.layout.to_json()
    return made
