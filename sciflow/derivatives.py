"""Gradients that are right once, and raise an error where they would be wrong the second time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from sciflow.errors import DerivativeError

__all__ = ["differentiable_once", "refuse_torch_func", "require_graph"]


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


def refuse_torch_func(what: str) -> None:
    """Refuse to be looked into by ``torch.func``.

    Args:
        what: Who refuses.

    Raises:
        DerivativeError: Within one of its transforms, such as ``vmap`` or ``grad``.
    """
    if retrieve_all_functorch_interpreters():
        raise DerivativeError(f"torch.func cannot look into {what}: ask for gradients by torch.autograd.grad")


def require_graph(answer: Tensor, x: Tensor, what: str) -> None:
    """Refuse an answer that was cut off from what it depends on, where derivatives are asked for.

    Args:
        answer: Of a function of the user's.
        x: What it was asked about.
        what: Which function it is.

    Raises:
        DerivativeError: It has no graph, though ``x`` has one.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> require_graph((x * x).detach(), x, "the network")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        sciflow.errors.DerivativeError: the network: its answer has no derivatives, of which log p is made: ...
    """
    if torch.is_grad_enabled() and x.requires_grad and not answer.requires_grad:
        raise DerivativeError(
            f"{what}: its answer has no derivatives, of which log p is made: leave out torch.no_grad and detach"
        )
