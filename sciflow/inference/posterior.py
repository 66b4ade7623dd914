"""A posterior that was fitted: draws, log p, log Z, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciflow.arguments import Arguments
from sciflow.density import MOST_SEED, Density
from sciflow.errors import ConfigError, nearest
from sciflow.inference.evidence import Evidence
from sciflow.inference.parameters import Parameters
from sciflow.inference.posterior_files import read_posterior, write_posterior
from sciflow.inference.psis import USABLE, verdict_on
from sciflow.inference.variational.diffusion_sampler import DiffusionSampler
from sciflow.inference.variational.log_density import EVENT
from sciflow.likelihood import Likelihood

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["Posterior"]


@dataclass
class Posterior:
    """A density fitted to another, with what importance weights say of the fit.

    Attributes:
        density: The fitted density, of unconstrained rows ``[d]``; or a diffusion, whose draws come with weights.
        parameters: Constraints by name; an event without names is called ``x``.
        by_name: Whether values come and go by name.
        elbo: Evidence lower bound: the mean of ``log p~ - log q`` over draws of the fit, nats.
        elbo_error: Its standard error.
        log_z: Logarithm of the normalising constant, with its standard error.
        ess: Effective share of the draws, 0 to 1, once they are weighted.
        k_hat: Shape of the tail of the weights; see :func:`sciflow.inference.psis.pareto_smoothed`.
        pool: Draws of the fit that were weighted, unconstrained, ``[n, d]``.
        log_weights: Their smoothed log weights, of sum 1, ``[n]``.
        notes: What is to be known of this fit, in sentences.
        history: Of the fit: steps, ELBO and its error, effective share.
        observed: What was observed, by name, for :meth:`to_arviz`.
    """

    density: Density | DiffusionSampler
    parameters: Parameters
    by_name: bool
    elbo: float
    elbo_error: float
    log_z: Evidence
    ess: float
    k_hat: float
    pool: Tensor
    log_weights: Tensor
    notes: list[str] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        digits = min(4, max(1, 1 - math.floor(math.log10(max(self.log_z.standard_error, 1e-4)))))
        return (
            f"Posterior(log Z {self.log_z.value:.{digits}f} +- {self.log_z.standard_error:.{digits}f}, "
            f"k-hat {self.k_hat:.2f} ({verdict_on(self.k_hat)}), ESS {self.ess:.0%})"
        )

    @property
    def verdict(self) -> str:
        """What the fit is good for, in words."""
        k_hat = f"k-hat {self.k_hat:.2f}"
        if self.k_hat <= USABLE:
            plain = "The fit is close to the posterior" if self.ess > 0.5 else "The fit is near the posterior"
            said = (
                f"{plain} ({k_hat}, {self.ess:.0%} of draws in effect): use resample() for means and tails, sample() "
                "for speed."
            )
        else:
            said = (
                f"The fit misses parts of the posterior ({k_hat} > {USABLE}): weights lie on a few draws. "
                "Trust neither sample() nor resample() in the tails; try family='mixture', a larger flow, more "
                "particles, or another parametrisation."
            )
        return " ".join([said, *self.notes])

    def sample(self, n: int, seed: int | None = None) -> Any:
        """Draw from the fitted density.

        Args:
            n: Number of draws.
            seed: Of the draws; None draws from torch's own generator.

        Returns:
            ``[n, *event_shape]``; of named parameters, ``[n, *shape]`` by name.
        """
        return self._values(self.density.sample(n, seed=seed))

    def resample(self, n: int, seed: int = 0) -> Any:
        """Draw from the pool by its smoothed importance weights: closer to the posterior than :meth:`sample`.

        Draws may come several times, as many as their weight has them come.

        Args:
            n: Number of draws; more than ``ess`` times the pool bring nothing new.
            seed: Of the draws.

        Returns:
            As :meth:`sample`.
        """
        arguments = Arguments("Posterior.resample")
        n = arguments.whole("n", n, 0, 1 << 40)
        generator = torch.Generator().manual_seed(arguments.whole("seed", seed, 0, MOST_SEED))
        ends = self.log_weights.double().cpu().exp().cumsum(0)
        at = (torch.arange(n, dtype=torch.float64) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        places = torch.searchsorted(ends / ends[-1], at).clamp_max(len(ends) - 1)
        return self._values(self.pool[places[torch.randperm(n, generator=generator)]])

    def log_prob(self, values: Any) -> Tensor:
        """Normalised log density of the fit, in the units of the parameters.

        Args:
            values: ``[*batch, *event_shape]``; of named parameters, ``[*batch, *shape]`` by name.

        Returns:
            ``[*batch]``, nats, with a gradient where ``values`` has one.

        Raises:
            ConfigError: A value does not fit its constraint.
            ShapeError: A value has another shape.
        """
        free, log_det, batch = self._rows(values)
        return (self.density.log_prob(free) - log_det).reshape(batch)

    def likelihood(self, values: Any) -> Likelihood:
        """Log p with its kind, error bar, cost and status, one entry a row.

        Args:
            values: As :meth:`log_prob` takes them.
        """
        free, log_det, batch = self._rows(values)
        found = self.density.likelihood(free)
        return replace(found, log_prob=found.log_prob - log_det).reshape(batch)

    def summary(self) -> pd.DataFrame:
        """Mean, standard deviation and quantiles of every parameter, by importance weights, with their error.

        Returns:
            One row a number; ``mcse_mean`` is the Monte-Carlo standard error of the mean.
        """
        import pandas as pd

        rows = self.parameters.flatten(self.parameters.unpack(self.pool)[0]).double().cpu()
        weights = torch.softmax(self.log_weights.double().cpu(), 0)
        mean = weights @ rows
        centred = rows - mean
        std = (weights @ centred.square()).sqrt()
        error = (weights.square() @ centred.square()).sqrt()
        ordered, order = rows.sort(0)
        mass = weights[order].cumsum(0)
        columns = {"mean": mean, "sd": std, "mcse_mean": error}
        for level in (0.05, 0.5, 0.95):
            place = (mass < level).sum(0).clamp_max(len(rows) - 1)
            columns[f"q{100 * level:g}"] = ordered.gather(0, place[None])[0]
        return pd.DataFrame({name: value.numpy() for name, value in columns.items()}, index=self.parameters.labels)

    def plot(self, names: Sequence[str] | None = None, max_features: int = 5, seed: int = 0) -> Figure:
        """Draw the posterior, every pair of parameters: points are importance-resampled draws, contours the fit.

        Args:
            names: Parameters to draw, such as ``["mu", "theta"]``, or numbers of them, such as ``"theta[3]"``; None for
                all, or the first number of each and then others in order; of an event without names, evenly spaced.
            max_features: How many numbers are drawn at most, where none are named.
            seed: Of the draws.

        Raises:
            ConfigError: There is no such parameter.
        """
        from sciflow.report.pairs import corner

        labels = self.parameters.labels
        most = Arguments("Posterior.plot").whole("max_features", max_features, 1, 100)
        if names is not None:
            chosen = _places(names, labels)
        else:
            chosen = _first_of_each(labels, most) if self.by_name else list(range(len(labels)))
        count = min(4000, len(self.pool))
        ours = self.parameters.flatten(self._named(self.sample(count, seed)))[:, chosen].numpy()
        resampled = self.parameters.flatten(self._named(self.resample(count, seed)))[:, chosen].numpy()
        figure = corner(
            resampled,
            ours,
            names=[labels[place] for place in chosen],
            max_features=most if names is None else len(chosen),
            seed=seed,
            called=("draws, importance-resampled", "the fit"),
        )
        shown = str(figure.get_label()).rpartition(", by ")[2]
        figure.set_label(f"{count:,} importance-resampled draws of the posterior, and as many of the fit, by {shown}")
        figure.suptitle(repr(self).removeprefix("Posterior(").removesuffix(")"), fontsize=9)
        return figure

    def to_arviz(self, num_draws: int = 4000, seed: int = 0) -> xr.DataTree:
        """Return a DataTree as ArviZ reads it: groups ``posterior``, ``sample_stats``, ``observed_data``.

        ``posterior`` holds importance-resampled draws as one chain; ``unweighted`` the fit's own, with
        ``sample_stats/log_weight`` theirs.

        Args:
            num_draws: Draws of each.
            seed: Of the draws.
        """
        import numpy as np
        import xarray as xr

        count = min(Arguments("Posterior.to_arviz").whole("num_draws", num_draws, 1, 1 << 40), len(self.pool))

        def group(values: Mapping[str, Tensor]) -> xr.Dataset:
            return xr.Dataset(
                {
                    name: (("chain", "draw", *(f"{name}_dim_{i}" for i in range(value.ndim - 1))), value.numpy()[None])
                    for name, value in values.items()
                },
                coords={"chain": [0], "draw": np.arange(count)},
                attrs={"inference_library": "sciflow"},
            )

        own = self._named(self._values(self.pool[:count]))
        stats = xr.Dataset(
            {"log_weight": (("chain", "draw"), self.log_weights[:count].double().cpu().numpy()[None])},
            coords={"chain": [0], "draw": np.arange(count)},
            attrs={
                "k_hat": self.k_hat,
                "ess_share": self.ess,
                "elbo": self.elbo,
                "elbo_error": self.elbo_error,
                "log_z": self.log_z.value,
                "log_z_error": self.log_z.standard_error,
                "log_z_method": self.log_z.method,
            },
        )
        groups = {
            "posterior": group(self._named(self.resample(count, seed))),
            "unweighted": group(own),
            "sample_stats": stats,
        }
        if self.observed:
            groups["observed_data"] = xr.Dataset(
                {
                    name: (tuple(f"{name}_dim_{i}" for i in range(np.ndim(value))), np.asarray(value))
                    for name, value in self.observed.items()
                }
            )
        return xr.DataTree.from_dict(groups)

    def save(self, path: str | Path) -> Path:
        """Write the posterior into the folder ``path``: safetensors and JSON; :meth:`load` reads it.

        Args:
            path: The folder, which is made if need be.

        Returns:
            The folder.

        Raises:
            ModelFileError: It cannot be written.
        """
        return write_posterior(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        log_density: Callable[..., Any] | None = None,
    ) -> Posterior:
        """Read back what :meth:`save` wrote.

        Args:
            path: The folder.
            device: Where to put the density.
            log_density: What was fitted, for a diffusion: it draws with the density's help, and no file holds that.

        Raises:
            ModelFileError: A file is missing, damaged, or of another kind; or a diffusion lacks its ``log_density``.
        """
        return cls(**read_posterior(Path(path), device, log_density))

    def _rows(self, values: Any) -> tuple[Tensor, Tensor, torch.Size]:
        """Unconstrained rows ``[n, d]``, log-determinants of what maps them to values, and their shape."""
        named = values if self.by_name else {EVENT: values}
        free = self.parameters.pack(named, dtype=self.density.dtype)
        _, log_det = self.parameters.unpack(free)
        return free.reshape(-1, free.shape[-1]), log_det.reshape(-1), log_det.shape

    def _values(self, free: Tensor) -> Any:
        values = self.parameters.unpack(free)[0]
        return values if self.by_name else values[EVENT]

    def _named(self, values: Any) -> dict[str, Tensor]:
        given = values if self.by_name else {EVENT: values}
        return {name: value.detach().cpu() for name, value in given.items()}


def _first_of_each(labels: list[str], most: int) -> list[int]:
    """Places at which a parameter begins, and where those are few, others as they come."""
    begins = [i for i, label in enumerate(labels) if i == 0 or _name(label) != _name(labels[i - 1])]
    others = sorted(set(range(len(labels))) - set(begins))
    return sorted([*begins, *others][:most])


def _name(label: str) -> str:
    return label.partition("[")[0]


def _places(names: Sequence[str], labels: list[str]) -> list[int]:
    """Where the numbers of these parameters are among all."""
    places: list[int] = []
    for name in [names] if isinstance(names, str) else names:
        found = [i for i, label in enumerate(labels) if name in (label, _name(label))]
        if not found:
            raise ConfigError(f"plot: no parameter {name!r:.80}; {nearest(str(name), labels)}")
        places += found
    if not places:
        raise ConfigError("plot: names is empty; name a parameter, or leave names out")
    return places
