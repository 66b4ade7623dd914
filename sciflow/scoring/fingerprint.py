"""What a value is, as one hash: two values have the same one only where they are the same in every digit."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sciflow.density import Density
from sciflow.model_file import weights_hash

__all__ = ["fingerprint"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range)


def fingerprint(value: Any) -> str | None:
    """Hash a value by its content; a text such as ``repr`` leaves out digits, elements and weights.

    Args:
        value: Numbers, texts, tensors, arrays, densities, objects of sciflow's, and lists and mappings of them.

    Returns:
        SHA-256 in hexadecimal; None where there is something in it that cannot be compared between processes: a
        function, or an object of a class that is not sciflow's.

    Example:
        >>> from sciflow.diffusion import Inpainting, Observation
        >>> one, other = (fingerprint({"guidance": Inpainting([1.0, high])}) for high in (2.0, 2.0000002))
        >>> one == other
        False
        >>> fingerprint(Observation(lambda x: x[:, :1], value=[1.0], std=0.1)) is None
        True
    """
    try:
        return _hash(json.dumps(_content(value)).encode())
    except _IncomparableError:
        return None


class _IncomparableError(Exception):
    """What something does is not known from what it holds."""


def _content(value: Any) -> list[Any]:
    """A value as JSON holds it; what it is stands first, so that no two kinds are mixed up."""
    kind = type(value)
    if kind in _PLAIN:
        return [kind.__name__, repr(value)]
    if isinstance(value, list | tuple):
        return ["list", *map(_content, value)]
    if kind is dict:
        # In the order given: that of contexts, for one, says where they lie in a vector.
        return ["mapping", *([_content(name), _content(item)] for name, item in value.items())]
    if kind in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_quantized:
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return ["tensor", str(value.dtype), list(value.shape), _hash(plain.reshape(-1).view(torch.uint8).numpy())]
    if (kind is np.ndarray or isinstance(value, np.generic)) and not value.dtype.hasobject:
        return ["array", repr(value.dtype), list(value.shape), _hash(value.tobytes())]
    if isinstance(value, Density):
        # A density is what its class makes of its arguments and weights: that is how it is read from a file.
        return ["density", _named(kind), str(value.dtype), weights_hash(value), _content(value.arguments)]
    if (
        kind.__module__.partition(".")[0] == "sciflow"
        and hasattr(value, "__dict__")
        and not isinstance(value, nn.Module)
    ):
        return ["object", _named(kind), _content(vars(value))]
    raise _IncomparableError


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _hash(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
