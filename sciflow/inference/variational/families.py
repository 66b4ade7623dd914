"""What may be fitted to a density, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import named
from sciflow.density import Density
from sciflow.families import build
from sciflow.flows import Flow, MixtureOfFlows, VariationalFlow
from sciflow.flows.base import FullGaussianMixture

__all__ = ["FAMILIES", "family_for", "family_named", "num_modes"]

# From the name that users say to a workflow's name of a density, and sizes that do for posteriors.
FAMILIES: dict[str, dict[str, Any]] = {
    "flow": {"name": "variationalflow"},
    "gaussian": {"name": "variationalflow", "num_transforms": 0, "marginals": False},
    "mixture": {"name": "mixtureofflows", "preprocess": "none"},
    "realnvp": {"name": "realnvp", "num_transforms": 8, "hidden_features": (64, 64)},
    "nsf": {"name": "nsf", "num_transforms": 6, "hidden_features": (64, 64), "tail_bound": 4.0},
    "iaf": {"name": "iaf", "num_transforms": 6, "hidden_features": (64, 64)},
    "continuous": {"name": "continuousflow", "network": {"mlp": {"hidden_features": (64, 64, 64)}}},
    "diffusion": {},
}

_MOST_MODES = 64
_MOST_FLOWS = 8  # of a mixture that finds its own number: each costs as much as one alone
_SHARED = 0.01  # of the particles of the smaller of two Gaussians, above which they are of one mode
_FEWEST_PARTICLES = 16
_ROWS_A_NUMBER = 2  # of a mixture's, at the least
_GAIN = 0.02  # nats of held-out log p that more components have to bring


def family_named(given: Any) -> tuple[str, Mapping[str, Any]]:
    """Return name and options of a family that is asked for.

    Raises:
        ConfigError: There is no such family.

    Example:
        >>> family_named({"flow": {"num_transforms": 8}})
        ('flow', {'num_transforms': 8})
    """
    return named("family", given, [*FAMILIES])


def family_for(given: Any, particles: Tensor, generator: torch.Generator) -> Density:
    """Build a family for what particles show, set up on them where it can be.

    Args:
        given: A name of :data:`FAMILIES`, or ``{name: options}`` with arguments of its constructor.
        particles: ``[n, d]``, of the density, unconstrained.
        generator: Of the set-up.

    Raises:
        ConfigError: There is no such family, or it has no such argument.
    """
    name, options = family_named(given)
    size = particles.shape[1]
    seed = int(torch.randint(1 << 31, (), generator=generator))
    if name == "mixture":
        return _mixture(options, seed, particles, generator)
    model = {**FAMILIES[name], "seed": seed, **options}
    if model["name"] == "variationalflow":
        if name != "gaussian" and "num_components" not in options:
            plain = build({**model, "num_components": 1, "num_transforms": 0}, (size,))
            model["num_components"] = num_modes(plain, particles, generator)
        flow = build(model, (size,)).to(particles.device, particles.dtype)
        assert isinstance(flow, VariationalFlow)
        return flow.set_up(particles, generator)
    # Solvers need no more digits than a network has learned.
    dtype = torch.float32 if name == "continuous" else particles.dtype
    density = build(model, (size,)).to(particles.device, dtype)
    density.fit_preprocessing(particles)
    if isinstance(density, Flow) and isinstance(density.base, FullGaussianMixture):
        density.base.fit(density.encode(particles).detach(), generator)
    return density


def _mixture(options: Mapping[str, Any], seed: int, particles: Tensor, generator: torch.Generator) -> MixtureOfFlows:
    """A mixture of variational flows, each set up on particles that lie apart from the others.

    Options are those of the flows, but for their number, which is found where it is not given.
    """
    options = dict(options)
    count, labels = options.pop("num_components", None), None
    component: Any = {"variationalflow": options}
    if count is None:
        plain = build({"name": "variationalflow", "num_transforms": 0, "seed": seed}, (particles.shape[1],))
        found = num_modes(plain, particles, generator, least=2)
        labels, gaussians = _apart(plain, found, particles, generator)
        count = max(2, len(gaussians))
        if not 2 <= len(gaussians) <= _MOST_FLOWS:
            labels, count = None, min(count, _MOST_FLOWS)
            gaussians = [-(-found // count)] * count
        component = [{"variationalflow": {"num_components": number, **options}} for number in gaussians]
    model = {**FAMILIES["mixture"], "component": component, "num_components": count, "seed": seed}
    mixture = build(model, (particles.shape[1],)).to(particles.device, particles.dtype)
    assert isinstance(mixture, MixtureOfFlows)
    return mixture.set_up(particles, generator, labels)


@torch.no_grad()
def _apart(flow: Density, count: int, particles: Tensor, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Which particles lie apart: a label each ``[n]``, and how many of ``count`` Gaussians describe those of a label.

    Gaussians that share particles are of one mode, however it is bent.
    """
    z = flow.encode(particles)
    shares = FullGaussianMixture((z.shape[1],), count).to(z).fit(z, generator).shares(z)
    totals = shares.sum(0)
    together = shares.T @ shares / torch.minimum(totals, totals[:, None]).clamp_min(1e-9) > _SHARED
    for _ in range(count.bit_length()):
        together = (together.to(z) @ together.to(z)) > 0
    first = together.to(z).argmax(1)[shares.argmax(1)]
    kept, labels, numbers = first.unique(return_inverse=True, return_counts=True)
    gaussians = [int(together[k].sum()) for k in kept.tolist()]
    if int(numbers.min()) < _FEWEST_PARTICLES:
        return labels, []  # too few to set a flow up on
    return labels, gaussians


def num_modes(flow: Density, particles: Tensor, generator: torch.Generator, least: int = 1) -> int:
    """How many Gaussians the particles are best described by, once marginals and correlations are taken off.

    Numbers are doubled as long as held-out particles become likelier.

    Args:
        flow: A variational flow without couplings.
        particles: ``[n, d]``.
        generator: Of hold-out and fits.
        least: Fewest.
    """
    assert isinstance(flow, VariationalFlow)
    order = torch.randperm(len(particles), generator=generator).to(particles.device)
    rows = particles[order]
    held_out, size = len(rows) // 5, rows.shape[1]
    flow = flow.to(rows.device, rows.dtype).set_up(rows[held_out:], generator)
    with torch.no_grad():
        z = flow.encode(rows)
    best, best_score, count = least, -torch.inf, least
    while count <= _MOST_MODES and (count == least or count * size * (size + 3) / 2 * _ROWS_A_NUMBER <= len(rows)):
        mixture = FullGaussianMixture((size,), count).to(z).fit(z[held_out:], generator)
        with torch.no_grad():
            score = float(mixture.log_prob(z[:held_out]).mean())
        if score > best_score + _GAIN:
            best, best_score = count, score
        elif score < best_score - 1:
            break
        count *= 2
    return best
