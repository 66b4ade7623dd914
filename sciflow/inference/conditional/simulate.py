"""Who makes the simulations, and where they go: memory or a store, this process or Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sciflow.data.lock import writing
from sciflow.data.store import is_url
from sciflow.errors import ConfigError
from sciflow.inference.conditional.simulating import Simulating, open_simulations
from sciflow.inference.conditional.simulations import Part
from sciflow.scoring.distributed import each_here, each_on_ray
from sciflow.scoring.output import checked_place

__all__ = ["Where", "beside"]


@dataclass(frozen=True)
class Where:
    """Where simulations are made, and where they go.

    Attributes:
        store: A folder or a URL; None for memory.
        num_workers: At a time, on Ray.
        address: Of a Ray cluster.
        local: In this process, although there is a store.
        overwrite: Replace what is in the store.
        progress: Show a progress bar.
    """

    store: str | None
    num_workers: int | None
    address: str | None
    local: bool
    overwrite: bool
    progress: bool

    @classmethod
    def of(
        cls,
        store: str | Path | None,
        num_workers: int | None,
        address: str | None,
        local: bool,
        overwrite: bool,
        progress: bool,
    ) -> Where:
        """Check what a user says.

        Raises:
            ConfigError: The store is no place, or the workers no number.
        """
        whole = isinstance(num_workers, int) and not isinstance(num_workers, bool)
        if num_workers is not None and not (whole and num_workers >= 1):
            raise ConfigError(f"num_workers {num_workers!r:.80}: 1 or more")
        place = None if store is None else checked_place(store)
        if place is not None and not is_url(place):
            # Workers have a working directory of their own.
            place = str(Path(place).absolute())
        return cls(place, num_workers, address, local, overwrite, progress)

    @property
    def on_ray(self) -> bool:
        """Whether Ray makes them."""
        return not self.local and any(given is not None for given in (self.store, self.num_workers, self.address))

    @contextmanager
    def folder(self) -> Iterator[str | None]:
        """The store; or a folder for the time being, where Ray makes them and nobody keeps them; or None."""
        if self.store is not None or not self.on_ray:
            yield self.store
            return
        with tempfile.TemporaryDirectory(prefix="sciflow-") as folder:
            yield str(Path(folder) / "simulations.zarr")

    def make(self, job: Simulating) -> Part:
        """Make the simulations of a job that are not there yet."""
        if not job.place:
            return job.in_memory(lambda work, numbers: each_here(work, numbers, "simulating", self.progress))
        with nullcontext() if is_url(job.place) else writing(Path(job.place)):
            waiting = job.begin(self.overwrite)
            if waiting is not None:
                if self.on_ray and waiting:
                    work: Callable[[int], None] = job.write
                    each_on_ray(work, waiting, "simulating", self.address, False, self.progress, self.num_workers)
                else:
                    each_here(job.write, waiting, "simulating", self.progress)
                job.finish()
        part = open_simulations(job.place)
        assert part is not None
        return part


def beside(place: str, suffix: str) -> str:
    """A place beside another, whose name says what it is.

    Example:
        >>> beside("runs/sims.zarr", "round2")
        'runs/sims.round2.zarr'
    """
    stem = place.removesuffix(".zarr")
    return f"{stem}.{suffix}.zarr"
