"""Missing values: a policy that the user names, and an error that says where the first one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sciflow.data.axis import find_gap
from sciflow.data.cast import to_floats
from sciflow.data.source import Block, EventSource
from sciflow.errors import DataError
from sciflow.progress import progress_bar

__all__ = ["Missing", "survey"]


@dataclass
class Missing:
    """What is known of missing values, and what becomes of them.

    Attributes:
        policy: ``error``, ``drop`` or ``fill``.
        keep: ``[num_grid_events]``, False where an event is dropped; None keeps all.
        fill: Value for each variable (or one for all), where they are filled.
        counts: Missing values found, by variable.
    """

    policy: Literal["error", "drop", "fill"]
    keep: np.ndarray | None = None
    fill: np.ndarray | None = None
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def num_dropped(self) -> int:
        """Events that are left out."""
        return 0 if self.keep is None else int(np.count_nonzero(~self.keep))

    def resolve(self, block: Block, source: EventSource) -> Block:
        """Apply the policy to one block.

        Raises:
            DataError: A value is missing that the policy has no answer to; names variable and place.
        """
        if self.policy == "drop":
            return block
        if block.context is not None and not _all_finite(block.context):
            row = int(np.flatnonzero(~np.isfinite(block.context).all(-1))[0])
            raise DataError(
                f"{source.name}: the context ({', '.join(source.layout.context)}) has missing or infinite values, "
                f"first at {source.place(block.start + row)}: drop such events (--missing drop)"
            )
        if _all_finite(block.events):
            return block
        finite = np.isfinite(block.events)
        if self.policy == "error":
            raise DataError(_message(source, block, finite))
        assert self.fill is not None
        for variable, count in zip(source.layout.variables, _per_variable(source, ~finite), strict=True):
            self.counts[variable] = self.counts.get(variable, 0) + int(count)
        return Block(block.start, np.where(finite, block.events, _along_variables(source, self.fill)), block.context)


def survey(
    source: EventSource,
    max_bytes: int,
    policy: Literal["error", "drop", "fill"],
    fill_value: float | Sequence[float] | None,
    progress: bool,
) -> Missing:
    """Find what the policy needs to know beforehand: the events to drop, or the means to fill with.

    The policies ``error``, and ``fill`` with a value, need no pass of their own.
    """
    num_variables = len(source.layout.variables)
    gap = find_gap(source.layout, source.along_windows(), source.name)
    if gap is not None and policy != "drop":
        raise DataError(
            f"{gap.where}: {np.count_nonzero(gap.events):,} windows lie across such gaps. Leave them out "
            "(--missing drop), reindex the dimension first, so that they are missing values, or drop its coordinate"
        )
    if policy == "error":
        return Missing(policy)
    if policy == "fill" and fill_value is not None:
        fill = np.broadcast_to(np.asarray(fill_value, np.float64), num_variables)
        if not np.isfinite(fill).all():
            raise DataError(f"fill_value {fill_value}: give a finite number")
        return Missing(policy, fill=to_floats(fill, source.layout.dtype, f"{source.name}: fill_value"))
    keep = np.ones(source.layout.num_grid_events, bool) if gap is None else ~gap.events
    sums, finite_counts, missing = (np.zeros(num_variables, kind) for kind in (np.float64, np.int64, np.int64))
    with progress_bar("looking for missing values", source.layout.num_grid_events, progress) as update:
        for block in source.blocks(max_bytes):
            finite = np.isfinite(block.events)
            rows = finite.reshape(len(finite), -1).all(-1)
            if block.context is not None:
                rows &= np.isfinite(block.context).all(-1)
            keep[block.start : block.start + len(rows)] &= rows
            missing += _per_variable(source, ~finite)
            finite_counts += _per_variable(source, finite)
            sums += _per_variable(source, np.where(finite, block.events, 0))
            update(block.start + len(rows), "")
    counts = dict(zip(source.layout.variables, map(int, missing), strict=True))
    if policy == "drop":
        return Missing(policy, keep=keep, counts=counts)
    empty = [variable for variable, count in zip(source.layout.variables, finite_counts, strict=True) if count == 0]
    if empty:
        raise DataError(f"{source.name}: variable '{empty[0]}' has no value at all: leave it out, or give --fill-value")
    return Missing(policy, fill=(sums / finite_counts).astype(source.layout.dtype))


def _all_finite(events: np.ndarray) -> bool:
    # A sum is quicker than a mask, and not finite where any value is not (an overflow only sends us to look closer).
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(events.sum()) or np.isfinite(events).all())


def _per_variable(source: EventSource, values: np.ndarray) -> np.ndarray:
    axes = tuple(axis for axis in range(values.ndim) if axis != 1 or not source.layout.has_variable_axis)
    total = values.sum(axis=axes, dtype=np.float64 if values.dtype.kind == "f" else np.int64)
    return np.atleast_1d(total)


def _along_variables(source: EventSource, fill: np.ndarray) -> np.ndarray:
    if not source.layout.has_variable_axis:
        return fill[0]
    return fill.reshape(-1, *[1] * (len(source.layout.event_shape) - 1))


def _message(source: EventSource, block: Block, finite: np.ndarray) -> str:
    layout = source.layout
    row, *inside = (int(i) for i in np.argwhere(~finite)[0])
    if layout.has_variable_axis:
        variable = layout.variables[inside[0]]
        offsets = inside[1:]
    else:
        variable, offsets = layout.variables[0], inside
    return (
        f"{source.name}: variable '{variable}' has missing or infinite values, first at "
        f"{source.place(block.start + row, offsets)}. Choose what becomes of them: --missing drop | fill"
    )
