"""A masked autoregressive network, whose output for a feature is a function of the features before it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MADE", "MADESteps"]


class MADE(nn.Module):
    r"""Map a vector to parameters for each of its features; those of feature :math:`i` see :math:`x_{<i}` alone.

    Every hidden unit has a degree, the number of leading features that it may depend on, and masks cut whatever would
    break that. Units are sorted by degree, so that :meth:`steps` can compute each of them once, in order, as features
    become known. The blocks are those of :class:`sciflow.nets.ResidualMLP`; the last layer starts at zero. From Germain
    et al., arXiv:1502.03509.

    Args:
        num_features: Length of the vector.
        num_parameters: Outputs for each feature.
        hidden_features: Width of each hidden state.
        num_context: Length of the context vector, which every unit may depend on; 0 for none.
        dropout: Probability with which a unit inside a block is silenced while training.
        angles: Which features are angles: the network sees their cosine and sine.

    Example:
        >>> made = MADE(num_features=3, num_parameters=2, hidden_features=(64, 64))
        >>> made(torch.ones(5, 3)).shape
        torch.Size([2, 3, 5])
    """

    def __init__(
        self,
        num_features: int,
        num_parameters: int,
        hidden_features: Sequence[int] = (128, 128),
        num_context: int = 0,
        dropout: float = 0.0,
        angles: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.angles = frozenset(angles)
        self.num_features = num_features
        self.num_parameters = num_parameters
        self.num_context = num_context
        # Units of degree 0 see the context alone: without one there is nothing for them to see.
        degrees = [_degrees(width, num_features, least=0 if num_context else 1) for width in hidden_features]
        in_degrees = [i + 1 for i in range(num_features) for _ in range(2 if i in self.angles else 1)]
        self.first = MaskedLinear(torch.tensor(in_degrees), degrees[0])
        self.from_context = nn.Linear(num_context, hidden_features[0], bias=False) if num_context else None
        self.blocks = nn.ModuleList(_MaskedBlock(before, after, dropout) for before, after in pairwise(degrees))
        # Sorted by parameter, then by feature, as what they steer reads them.
        self.last = MaskedLinear(degrees[-1], torch.arange(num_features).repeat(num_parameters))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parameters of every feature.

        Args:
            x: ``[n, num_features]``.
            context: ``[n, num_context]``, or None.

        Returns:
            ``[num_parameters, num_features, n]``.
        """
        h = self.first(torch.cat([self.seen(i, column) for i, column in enumerate(x.T)]) if self.angles else x.T)
        if self.from_context is not None and context is not None:
            h = h + self.from_context(context).T
        for block in self.blocks:
            h = block(h)
        return self.last(h.relu_()).unflatten(0, (self.num_parameters, self.num_features))

    def seen(self, feature: int, values: Tensor) -> Tensor:
        """Return what the network sees of a feature: its values ``[n]``, or cosine and sine, one or two rows."""
        return torch.stack((values.cos(), values.sin())) if feature in self.angles else values[None]

    def steps(self, num_rows: int, context: Tensor | None = None) -> MADESteps:
        """Begin to compute the parameters of ``num_rows`` rows feature by feature."""
        return MADESteps(self, num_rows, context)


class MADESteps:
    """The parameters of one feature after the other, each hidden unit computed once.

    All features together cost the multiplications of one pass through the network.

    Args:
        made: The network; dropout plays no part.
        num_rows: How many rows there are.
        context: ``[num_rows, num_context]``, or None.

    Example:
        >>> steps = MADESteps(MADE(num_features=2, num_parameters=1), num_rows=5)
        >>> first = steps.next()
        >>> steps.next(torch.ones(5)).shape
        torch.Size([1, 5])
    """

    def __init__(self, made: MADE, num_rows: int, context: Tensor | None = None) -> None:
        self.made = made
        self.degree = 0  # how many features are known
        self.layers = [made.first, *(layer for block in made.blocks for layer in _layers(block))]
        self.weights = [layer.masked_weight() for layer in self.layers]
        self.layers_per_block = [len(_layers(block)) for block in made.blocks]
        self.last_weight = made.last.masked_weight().unflatten(0, (made.num_parameters, made.num_features))
        self.last_bias = made.last.bias.unflatten(0, (made.num_parameters, made.num_features))
        self.from_context = None
        if made.from_context is not None and context is not None:
            self.from_context = made.from_context(context).T
        # What is known so far of the inputs of every layer, the last one included: units of the degrees so far.
        widths = [layer.in_features for layer in (*self.layers, made.last)]
        self.known = [_Growing(width, num_rows, self.last_weight) for width in widths]

    def next(self, x: Tensor | None = None) -> Tensor:
        """Return the parameters of the next feature.

        Args:
            x: Values ``[num_rows]`` of the feature before; None for the first feature.

        Returns:
            ``[num_parameters, num_rows]``.
        """
        if x is not None:
            self.known[0].append(self.made.seen(self.degree, x))
            self.degree += 1
        degree = self.degree
        new = self._units(0, degree)
        if self.from_context is not None:
            new = new + self.from_context[self.layers[0].units_of_degree(degree)]
        layer = 1
        for num_layers in self.layers_per_block:
            before = new
            for _ in range(num_layers):
                self.known[layer].append(F.relu(new))
                new = self._units(layer, degree)
                layer += 1
            if num_layers == 2:  # a residual block
                new = before + new
        self.known[layer].append(F.relu(new))
        inputs = self.known[layer].rows
        return torch.addmm(self.last_bias[:, degree, None], self.last_weight[:, degree, : len(inputs)], inputs)

    def _units(self, layer: int, degree: int) -> Tensor:
        """The units of one degree, from the inputs known so far: ``[num_units, num_rows]``."""
        units, inputs = self.layers[layer].units_of_degree(degree), self.known[layer].rows
        bias, weight = self.layers[layer].bias[units, None], self.weights[layer][units, : len(inputs)]
        return torch.addmm(bias, weight, inputs)


class MaskedLinear(nn.Module):
    """A linear layer, of which each unit sees the inputs of its own degree and below; features come first.

    Args:
        in_degrees: Ascending degrees of the inputs.
        out_degrees: Degrees of the units.

    Example:
        >>> layer = MaskedLinear(torch.tensor([1, 2]), torch.tensor([1, 2, 2]))
        >>> layer.masked_weight().shape, layer.masked_weight()[0, 1].item() == 0
        (torch.Size([3, 2]), True)
    """

    mask: Tensor

    def __init__(self, in_degrees: Tensor, out_degrees: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = len(in_degrees), len(out_degrees)
        linear = nn.Linear(self.in_features, self.out_features)  # for its initial weights
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", (in_degrees <= out_degrees[:, None]).to(linear.weight.dtype), persistent=False)
        self._starts = torch.searchsorted(out_degrees, torch.arange(int(out_degrees.max()) + 2)).tolist()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[in_features, n]`` to ``[out_features, n]``."""
        return torch.addmm(self.bias[:, None], self.masked_weight(), x)

    def masked_weight(self) -> Tensor:
        """Return the weights, zero where the mask cuts."""
        return self.weight * self.mask

    def units_of_degree(self, degree: int) -> slice:
        """Return where the units of a degree are, if units are sorted by degree."""
        last = len(self._starts) - 1
        return slice(self._starts[min(degree, last)], self._starts[min(degree + 1, last)])


class _MaskedBlock(nn.Module):
    def __init__(self, before: Tensor, after: Tensor, dropout: float) -> None:
        super().__init__()
        self.inner = MaskedLinear(before, after)
        self.outer = MaskedLinear(after, after) if len(before) == len(after) else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        if self.outer is None:
            return self.inner(h.relu_())
        return self.outer(self.dropout(self.inner(F.relu(h)).relu_())).add_(h)


def _layers(block: nn.Module) -> list[MaskedLinear]:
    return [layer for layer in block.modules() if isinstance(layer, MaskedLinear)]


class _Growing:
    """Rows that are appended to.

    Without gradients they are written into one piece of memory; a graph of gradients needs its inputs left alone.
    """

    def __init__(self, most: int, num_columns: int, like: Tensor) -> None:
        self._in_place = not torch.is_grad_enabled()
        self._rows = like.new_empty(most if self._in_place else 0, num_columns)
        self._length = 0

    def append(self, rows: Tensor) -> None:
        if self._in_place:
            self._rows[self._length : self._length + len(rows)] = rows
        else:
            self._rows = torch.cat((self._rows, rows))
        self._length += len(rows)

    @property
    def rows(self) -> Tensor:
        return self._rows[: self._length]


def _degrees(width: int, num_features: int, least: int) -> Tensor:
    """Degrees from ``least`` to ``num_features - 1``, ascending, as evenly spread over the units as can be."""
    count = max(1, num_features - least)
    return least + torch.arange(width) * count // width
