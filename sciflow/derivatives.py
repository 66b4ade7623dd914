"""Gradients that are right once, and raise an error where they would be wrong the second time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from sciflow.errors import DerivativeError

__all__ = ["differentiable_once"]


def differentiable_once(x: Tensor, what: str, instead: str) -> Tensor:
    """Return ``x``, whose gradient takes for constant what is not, and so must not be differentiated again.

    Args:
        x: Any tensor.
        what: Whose gradient it is, for the error.
        instead: What to do, likewise.

    Raises:
        DerivativeError: Within two of ``torch.func``'s derivatives; or in the pass back, where a graph of the gradient
            is asked for by ``create_graph=True``.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> square = differentiable_once(x * x, "the square", "Use torch.pow")
        >>> torch.autograd.grad(square.sum(), x)[0]
        tensor([2., 2.])
    """
    message = f"the gradient of {what} cannot be differentiated again: it would be wrong. {instead}"

    def refuse(grad: Tensor) -> None:
        if torch.is_grad_enabled():
            raise DerivativeError(message)

    # A graph that is compiled as a whole has no second derivatives, and says so itself.
    if x.requires_grad and not torch.compiler.is_compiling():
        orders = [level.key() for level in retrieve_all_functorch_interpreters()]
        num_derivatives = sum(key in (TransformType.Grad, TransformType.Jvp) for key in orders)
        if num_derivatives > 1 and is_functorch_wrapped_tensor(x):
            raise DerivativeError(message)
        if num_derivatives == 0:  # torch.func asks for a graph of every gradient
            x.register_hook(refuse)
    return x
