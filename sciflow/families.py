"""The families of densities by name, as workflow and model files call them; a new family joins by one line."""

from __future__ import annotations

from pathlib import Path

import torch

from sciflow import model_file
from sciflow.density import Density
from sciflow.flows import NSF

__all__ = ["FAMILIES", "load"]

FAMILIES: dict[str, type[Density]] = {
    NSF.family: NSF,
}


def load(path: str | Path, device: str | torch.device = "cpu") -> Density:
    """Read a trained density back, in eval mode.

    Args:
        path: A folder that ``density.save`` wrote, or a run folder that holds one as ``model/``.
        device: Where to put it.

    Raises:
        ModelFileError: A file is missing, damaged, of an unknown kind, or would have to be unpickled.

    Example:
        >>> import tempfile
        >>> flow = NSF(event_shape=(2,), num_transforms=1)
        >>> load(flow.save(tempfile.mkdtemp())).event_shape
        torch.Size([2])
    """
    return model_file.load(path, FAMILIES, device)
