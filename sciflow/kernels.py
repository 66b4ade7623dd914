"""Pointwise functions fused by torch's compiler, where the work ahead pays for the compiling.

A long chain of elementwise operations costs a pass over memory for each; compiled (on a CPU and on a GPU from the same
source) it is one pass. Compiling takes some ten seconds the first time on a machine and two when the result is found in
torch's cache on disk, so it has to pay: it is done where a call, times the number of calls like it that are said to
come (:func:`repeated`), is work enough. What is done is a function of the work alone, never of the clock: the same
command gives the same numbers.

The environment variable ``SCIFLOW_COMPILE`` decides for a process: ``auto`` (the default), ``always`` or ``never``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor

from sciflow.errors import ConfigError, first_line, nearest

__all__ = ["SETTINGS", "Kernel", "compiling", "repeated", "worthwhile"]

Setting = Literal["auto", "always", "never"]
SETTINGS = ("auto", "always", "never")
VARIABLE = "SCIFLOW_COMPILE"

# Elements that one call, repeated, must come to. On a CPU core each saves 0.2 microseconds, forward and backward; a
# flow makes five to ten such calls a step, and compiling costs about 15 seconds.
ENOUGH = 15_000_000
# A call on fewer elements costs as much as on so many: the time goes into starting operations.
LEAST_CPU, LEAST_GPU = 2_000, 5_000
GPU_SPEED = 200

_calls: ContextVar[int] = ContextVar("calls", default=1)
_setting: ContextVar[Setting] = ContextVar("setting", default="auto")


@contextmanager
def repeated(times: int) -> Iterator[None]:
    """Say that whatever is called within will be called ``times`` times, or on so many batches.

    Example:
        >>> x = torch.zeros(100_000)
        >>> worthwhile(x)
        False
        >>> with repeated(1_000):
        ...     worthwhile(x)
        True
    """
    if torch.compiler.is_compiling():
        yield
        return
    token = _calls.set(times * _calls.get())
    try:
        yield
    finally:
        _calls.reset(token)


@contextmanager
def compiling(setting: Setting) -> Iterator[None]:
    """Decide for the calls within, unless the environment variable says ``always`` or ``never``.

    Example:
        >>> with compiling("always"):
        ...     worthwhile(torch.zeros(8))
        True
    """
    token = _setting.set(setting)
    try:
        yield
    finally:
        _setting.reset(token)


def worthwhile(x: Tensor) -> bool:
    """Whether elementwise work on ``x`` is to be done by compiled kernels.

    Never within somebody's own ``torch.compile``, nor under ``torch.func`` transforms and forward-mode derivatives,
    which need to see the operations.

    Raises:
        ConfigError: The environment variable says something else.
    """
    if torch.compiler.is_compiling() or x.numel() < 2 or x.device.type not in ("cpu", "cuda"):
        return False
    setting = _chosen()
    if setting == "never" or _seen_through(x):
        return False
    return setting == "always" or _calls.get() * _weight(x) >= ENOUGH


class Kernel:
    """A function of tensors that works element by element along their last dimension, compiled when first called.

    Where compiling fails (there is no compiler, or no permission to write) that is said once, and the function is
    called as it is: the numbers are the same up to rounding.

    Args:
        function: Takes contiguous tensors whose last dimensions agree, or of no dimension, without gradients; a plain
            function of a module.

    Example:
        >>> Kernel(lambda x: x.exp() + 1).function(torch.zeros(3))
        tensor([2., 2., 2.])
    """

    broken = False  # for all of them: what one cannot do, none can

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *tensors: Tensor) -> Any:
        if Kernel.broken:
            return self.function(*tensors)
        first = tensors[0]
        kind = (first.dtype, first.device.type, *(tensor.shape[:-1] for tensor in tensors))
        if kind not in self._compiled:
            self._compiled[kind] = _compile(self.function)
        try:
            if not torch.is_autocast_enabled(first.device.type):
                return self._compiled[kind](*tensors)
            with torch.autocast(first.device.type, enabled=False):
                return self._compiled[kind](*tensors)
        except Exception as error:  # of torch's compiler, g++, triton, the disk: they have no class in common
            Kernel.broken = True
            warnings.warn(
                f"torch.compile does not work here ({first_line(error):.200}): what it would speed up runs as it is, "
                f"with the same numbers. Install a C++ compiler, or set {VARIABLE}=never to silence this",
                stacklevel=2,
            )
            return self.function(*tensors)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # torch counts recompilations by code object, and gives up after eight: each kind of call gets a copy of its own.
    copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    # One pass over memory, however long the function: nothing is kept in memory between two passes of parts of it.
    options: dict[str, Any] = {"realize_opcount_threshold": 10_000, "max_fusion_size": 10_000}
    return torch.compile(copy, dynamic=True, fullgraph=True, options=options)


def _chosen() -> str:
    setting = os.environ.get(VARIABLE, "").lower() or "auto"
    if setting == "auto":
        return _setting.get()
    if setting in ("always", "never"):
        return setting
    raise ConfigError(f"environment variable {VARIABLE}: got {setting!r}; {nearest(setting, SETTINGS)}")


def _weight(x: Tensor) -> int:
    """How many elements on a CPU core would take as long."""
    if x.device.type == "cpu":
        return max(LEAST_CPU, x.numel())
    return max(LEAST_GPU, x.numel() // GPU_SPEED)


def _seen_through(x: Tensor) -> bool:
    """Whether a transform or a forward-mode derivative is at work."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
