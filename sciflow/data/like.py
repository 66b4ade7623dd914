"""New data of a kind that is known: laid out as those that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sciflow.data.inside import inside, require_inside
from sciflow.data.source import EventSource
from sciflow.data.store import open_store
from sciflow.errors import ConfigError, LayoutError

__all__ = ["request_like", "require_like"]


def request_like(
    like: str | Path, given: Mapping[str, Any], missing: str | None, fill_value: Any
) -> tuple[dict[str, Any], Any, Any]:
    """Return the layout to ask for, the policy for missing values, and what to fill with.

    Args:
        like: The store that is there.
        given: What the user says of layout and split: nothing, since the store says it.
        missing: The user's own policy, or None.
        fill_value: The user's own value, or None.

    Raises:
        ConfigError: The user says what the store says, or it is not known what the store was filled with.
        StoreError: There is no store.
    """
    said = [name for name, value in given.items() if value]
    if said:
        raise ConfigError(f"{said[0]} beside like={str(like)!r}: the store says it: leave one of them out")
    store = open_store(like)
    policy = missing or store.attributes["missing"]["policy"]
    if policy == "fill" and fill_value is None:
        # The mean of other data would be another number, and its places would stand out for that alone.
        fill_value = store.filled_with
        if fill_value is None:
            raise ConfigError(f"{like}: what it was filled with is not known: give fill_value (--fill-value)")
    return store.layout.request(), policy, fill_value


def require_like(source: EventSource, like: str | Path) -> None:
    """Refuse data whose events differ from those of a store: in their units, for one, or in where their numbers stand.

    Raises:
        LayoutError: They differ; says in what.
    """
    store = open_store(like)
    difference = source.layout.difference(store.layout.to_json())
    if difference is not None:
        raise LayoutError(f"{source.name}: not like {like}: {difference}")
    axes = source.layout.event_axes
    mine, theirs = (inside(axes, coordinates.coords) for coordinates in (source.coordinates(), store.coordinates))
    require_inside(mine, theirs, f"{source.name}: not like {like}")
