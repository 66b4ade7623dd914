"""The trace of a Jacobian, exactly or from random probes, and how far the field is from a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Divergence", "Exact", "Local", "Probed"]

Field = Callable[[Tensor, Tensor], Tensor]

# Values of cotangents that are carried at once: few enough to stay in a CPU's cache, many enough to keep a GPU busy.
_VALUES = {"cpu": 1 << 18, "cuda": 1 << 24}
_MOST_ROWS = {"cpu": 4096, "cuda": 1 << 20}
# What a field in one dimension may be off, where there is no asymmetry to tell it by.
_UNKNOWN = 0.05
# Probes that are held against each other, each against each.
_PAIRED = 64


class Local(NamedTuple):
    """What a field does at single states.

    Attributes:
        velocity: ``[n, d]``, the field.
        trace: ``[n, k]``, the trace of its Jacobian: once if it is exact, or as many times as there are probes.
        asymmetry: ``[n]``, :math:`|J - J^T| / |J + J^T|` by Frobenius' norm: 0 for the gradient of a function.
    """

    velocity: Tensor
    trace: Tensor
    asymmetry: Tensor


class Divergence(Protocol):
    """How the trace of a Jacobian is found."""

    num_estimates: int
    """Of the trace, a state."""

    def of(self, rows: Tensor) -> Divergence:
        """Return the same for some rows of the problem, ``[m]``, which are numbered anew."""

    def __call__(self, field: Field, z: Tensor, rows: Tensor) -> Local:
        """Look at a field at single states; with a graph of it where gradients are tracked.

        Args:
            field: ``field(z[part], part)``, ``[n, d]``, with ``part`` numbers of states; a state depends on itself
                alone.
            z: ``[n, d]``.
            rows: ``[n]``, which rows of the problem these states are of.
        """


class Exact:
    r"""The trace :math:`\sum_i \partial f_i / \partial z_i`, by products with all basis vectors.

    From the left, many at once: on perceptrons one takes half of the time of the field itself, and products from the
    right two to three times as long as that.

    Example:
        >>> z = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> found = Exact()(lambda z, part: z.square(), z, torch.arange(2))
        >>> found.trace.flatten().detach(), found.asymmetry
        (tensor([ 6., 14.], dtype=torch.float64), tensor([0., 0.], dtype=torch.float64))
    """

    num_estimates = 1

    def of(self, rows: Tensor) -> Exact:
        return self

    def __call__(self, field: Field, z: Tensor, rows: Tensor) -> Local:
        d = z.shape[1]
        found = []
        for part, state, answer in _parts(field, z, d * d):
            traces, differing, agreeing = [], [], []
            for places in torch.arange(d, device=z.device).split(_at_once(z, len(part) * d)):
                basis = torch.nn.functional.one_hot(places, d).to(answer)
                products = _products(answer, state, basis[:, None].expand(-1, len(part), -1))
                block = products[:, :, places].transpose(0, 1)
                traces.append(block.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64))
                differing.append(_squares(block - block.mT))
                agreeing.append(_squares(block + block.mT))
            size = torch.stack(agreeing).sum(0)
            ratio = (torch.stack(differing).sum(0) / torch.where(size > 0, size, 1)).sqrt()
            asymmetry = ratio if d > 1 else torch.full_like(ratio, _UNKNOWN)
            found.append(Local(_kept(answer), torch.stack(traces).sum(0)[:, None], asymmetry))
        return _joined(found, z, 1)


class Probed:
    r"""Estimates :math:`v_k^T J v_k` of the trace, with the same probes of a row wherever it is.

    .. math:: E \, v^T J v = \operatorname{tr} J \quad \text{for} \quad E \, v v^T = 1, \qquad
              \operatorname{Var} v^T J v = \tfrac12 |J + J^T|^2 - 2 \sum_i J_{ii}^2

    for signs :math:`v`. Being the same along a path, the estimates are integrals of one function of time, and what they
    are off by on average over probes shows in their spread. Source: Hutchinson, 1990, doi:10.1080/03610919008812866;
    Grathwohl et al., arXiv:1810.01367. Estimates that take the largest directions off first, Hutch++ and XTrace, are
    off by 1.1 to 2.4 times as much in as many products, but for one case of twelve: what noise has covered counts in
    all directions alike (``tests/benchmarks/divergence.py``).

    Args:
        probes: ``[rows, k, d]``, of every row.

    Example:
        >>> z = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> found = Probed(torch.ones(2, 1, 2))(lambda z, part: z.square(), z, torch.arange(2))
        >>> found.trace.flatten().detach()
        tensor([ 6., 14.], dtype=torch.float64)
    """

    def __init__(self, probes: Tensor) -> None:
        self.probes = probes
        self.num_estimates = probes.shape[1]

    def of(self, rows: Tensor) -> Probed:
        return Probed(self.probes[rows])

    def __call__(self, field: Field, z: Tensor, rows: Tensor) -> Local:
        k, d = self.num_estimates, z.shape[1]
        found = []
        for part, state, answer in _parts(field, z, k * d):
            vectors = self.probes[rows[part]].transpose(0, 1).to(answer)
            products = torch.cat([_products(answer, state, some) for some in vectors.split(_at_once(z, len(part) * d))])
            trace = (products * vectors).sum(2, dtype=torch.float64).mT
            few = (vectors.detach()[:_PAIRED], products.detach()[:_PAIRED])
            found.append(Local(_kept(answer), trace, _asymmetry(*few)))
        return _joined(found, z, k)


def _asymmetry(vectors: Tensor, products: Tensor) -> Tensor:
    r"""Estimate the asymmetry of :math:`J` from products with the same vectors: :math:`E (v_i^T A v_j)^2 = |A|^2`."""
    k = len(vectors)
    if k < 2:
        return torch.full((vectors.shape[1],), _UNKNOWN, dtype=torch.float64, device=vectors.device)
    between = torch.einsum("ind,jnd->nij", products, vectors).double()
    pairs = k * (k - 1)
    differing = _squares(between - between.mT) / pairs
    size = products.square().sum(2, dtype=torch.float64).mean(0)
    # |J + J^T|^2 = 4 |J|^2 - |J - J^T|^2, which estimates may have below 0.
    agreeing = (4 * size - differing).clamp_min(size)
    return (differing / torch.where(agreeing > 0, agreeing, 1)).sqrt()


def _parts(field: Field, z: Tensor, values: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Parts of the states that memory holds: their numbers, the states as leaves of a graph, and the field there."""
    tracked = torch.is_grad_enabled()
    most = _MOST_ROWS.get(z.device.type, _MOST_ROWS["cpu"])
    for part in torch.arange(len(z), device=z.device).split(min(most, _at_once(z, values))):
        with torch.enable_grad():
            state = z[part]
            if not (tracked and state.requires_grad):
                state = state.detach().requires_grad_()
            answer = field(state, part)
        yield part, state, answer  # with gradients tracked or not as the caller has it


def _at_once(z: Tensor, values: int) -> int:
    return max(1, _VALUES.get(z.device.type, _VALUES["cpu"]) // max(1, values))


def _products(answer: Tensor, state: Tensor, vectors: Tensor) -> Tensor:
    """Products of vectors ``[k, n, d]`` and the Jacobian of every state, of the same shape."""
    (products,) = torch.autograd.grad(
        answer, state, vectors, retain_graph=True, create_graph=torch.is_grad_enabled(), is_grads_batched=True
    )
    return products


def _kept(answer: Tensor) -> Tensor:
    return answer if torch.is_grad_enabled() else answer.detach()


def _squares(matrices: Tensor) -> Tensor:
    return matrices.detach().square().sum((1, 2), dtype=torch.float64)


def _joined(found: list[Local], z: Tensor, k: int) -> Local:
    if not found:
        none = z.new_zeros(0, dtype=torch.float64)
        return Local(z, none.reshape(0, k), none)
    return Local(*(torch.cat(parts) for parts in zip(*found, strict=True)))
