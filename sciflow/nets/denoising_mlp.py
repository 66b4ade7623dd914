"""A multilayer perceptron that denoises: its blocks are steered by noise level and context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.contexts import Contexts
from sciflow.nets.conditioning import Conditioning

__all__ = ["DenoisingMLP"]


class DenoisingMLP(nn.Module):
    r"""Map noisy vectors, the level of their noise and a context to vectors.

    .. math:: h_0 = W \, [x, a_j \sin 2^j x, a_j \cos 2^j x]_{j = 1 \dots J} + b, \quad
              a_j = e^{-(2^j k)^2 / 2}, \qquad
              h_{i+1} = h_i + g_i \cdot B_i \, \mathrm{silu}\big(A_i ((1 + s_i) \cdot \mathrm{norm}(h_i) + m_i)\big)

    where scales :math:`s_i`, shifts :math:`m_i` and gates :math:`g_i` of all blocks are one linear map of the
    :class:`sciflow.nets.conditioning.Conditioning`. That map starts at zero, so that all blocks do (adaLN-zero of
    Peebles & Xie, arXiv:2212.09748), and so does the last layer. Events of more than one dimension are read as vectors.

    Waves of the elements show the network what is fine, such as edges and steps, sooner (Tancik et al.,
    arXiv:2006.10739; Kingma et al., arXiv:2107.00630). They fade where the noise, of level :math:`k`, covers them:
    there they would only make the answer rough. Four octaves by default: after 5,000 steps on rings in the plane the
    bound is 0.6 nats above that without any, and boosted trees tell draws from data in 50 % of cases instead of 68 %;
    on tables (HTRU2, power plant) in 52 instead of 54 %, and in 57 instead of 60 %.

    Args:
        event_shape: Shape of one event.
        contexts: What the network is conditioned on, or None.
        num_levels: How many levels of noise a row has.
        hidden_features: Width of each block's state, one entry a block.
        embedding_features: Length of the vector that level and context are made into.
        num_frequencies: :math:`J`, octaves of waves; 0 for none.
        dropout: Probability with which a unit inside a block is silenced while training.

    Example:
        >>> net = DenoisingMLP((5,), hidden_features=(64, 64))
        >>> net(torch.ones(7, 5), torch.zeros(7)).shape
        torch.Size([7, 5])
    """

    frequencies: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        contexts: Contexts | None = None,
        *,
        num_levels: int = 1,
        hidden_features: Sequence[int] = (256, 256, 256, 256),
        embedding_features: int = 128,
        num_frequencies: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.register_buffer("frequencies", 2.0 ** torch.arange(1, num_frequencies + 1), persistent=False)
        num_features = torch.Size(event_shape).numel()
        self.conditioning = Conditioning(contexts, embedding_features, num_levels)
        self.first = nn.Linear(num_features * (1 + 2 * num_frequencies), hidden_features[0])
        befores = [hidden_features[0], *hidden_features[:-1]]
        self.blocks = nn.ModuleList(
            _Block(before, width, dropout) for before, width in zip(befores, hidden_features, strict=True)
        )
        self.last = nn.Linear(hidden_features[-1], num_features)
        # Shift and scale of what a block reads, gate of what it adds; and shift and scale of what the last layer reads.
        ends = zip(befores, hidden_features, strict=True)
        self.sizes = [size for before, width in ends for size in (before, before, width)] + 2 * [hidden_features[-1]]
        self.modulation = nn.Linear(embedding_features, sum(self.sizes))
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a tensor of ``x``'s shape.

        Args:
            x: ``[n, *event_shape]``.
            level: ``[n]``, or ``[n, num_levels]`` where there are several; of one row where all rows have the same.
            context: ``[n, contexts.size]``, or one row for all; None where none of it is given.
        """
        steering = self.modulation(self.conditioning(level, context).vector).split(self.sizes, -1)
        h = self.first(self._with_waves(x.flatten(1), level))
        for place, block in enumerate(self.blocks):
            h = block(h, *steering[3 * place : 3 * place + 3])
        return self.last(F.silu(_modulated(h, *steering[-2:]))).reshape(x.shape)

    def _with_waves(self, x: Tensor, level: Tensor) -> Tensor:
        if not self.num_frequencies:
            return x
        noise = torch.exp(4 * (level if level.ndim == 1 else level[:, 0]))
        # Never below e^-40: it is as good as 0, and denormal numbers would double the time of the first layer.
        fading = (0.5 * (self.frequencies * noise[:, None]).square()).clamp_max(40)
        amplitudes = torch.exp(-fading)[:, :, None, None]
        angles = self.frequencies[:, None] * x[:, None]
        # Octave by octave, sines and then cosines of all elements.
        waves = amplitudes * torch.stack((torch.sin(angles), torch.cos(angles)), 2)
        return torch.cat((x, waves.flatten(1)), 1)


class _Block(nn.Module):
    def __init__(self, before: int, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(before, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.past = nn.Identity() if before == width else nn.Linear(before, width, bias=False)

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        added = self.outer(self.dropout(F.silu(self.inner(_modulated(h, shift, scale)))))
        return torch.addcmul(self.past(h), gate, added)


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)
