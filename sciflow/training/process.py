"""One process among those that train together; alone, every operation is the identity."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Process"]


class Process:
    """This process and its device, as torch.distributed knows them (started by torchrun, by Ray, or not at all).

    Args:
        device: Where this process computes.
        alone: Train by oneself, whatever torch.distributed says.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        device: Where this process computes.
    """

    def __init__(self, device: torch.device | str = "cpu", alone: bool = False) -> None:
        self.distributed = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1
        self.device = torch.device(device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def seed(self, *key: int) -> None:
        """Seed torch's own generators by a key and the rank."""
        seed = int(np.random.SeedSequence([*key, self.rank]).generate_state(1)[0])
        # torch.manual_seed would reach for GPUs that are not in use, at the cost of a step of a small model.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
