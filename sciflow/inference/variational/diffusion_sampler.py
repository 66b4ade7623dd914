"""A density that is known up to a constant, drawn from by a diffusion that was trained on it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments
from sciflow.density import MOST_SEED
from sciflow.errors import ConfigError, DataError, ModelFileError, ShapeError, first_line
from sciflow.files import write_to_disk, written_whole
from sciflow.inference.variational.controlled_langevin import ControlledLangevin, gaussian_log_prob
from sciflow.inference.variational.gaussians import FullGaussian
from sciflow.inference.variational.log_density import LogDensity
from sciflow.likelihood import Likelihood, importance_weighted

__all__ = ["DiffusionSampler", "Trail", "is_diffusion_sampler"]

_FORMAT, _VERSION = "sciflow-diffusion-sampler", 1
_WEIGHTS, _DESCRIPTION = "sampler.safetensors", "sampler.json"
_ROWS_AT_A_TIME = 1024
_FURTHEST = 1e6  # standard deviations of the base


class Trail:
    """Rows at every time on their way, with the target's log density and score, in the base's coordinates.

    Attributes:
        y: ``[num_steps + 1, n, d]``.
        scores: Gradients of the target's logarithm, same shape.
        log_p: Of the last rows, ``[n]``; -inf outside the support.
    """

    def __init__(self, y: list[Tensor], scores: list[Tensor], log_p: Tensor) -> None:
        self.y, self.scores, self.log_p = torch.stack(y), torch.stack(scores), log_p


class DiffusionSampler(nn.Module):
    r"""Draws of a density by controlled Langevin steps from a Gaussian, with weights that make them exact.

    .. math:: \log w = \log \tilde p(y_K) - \log q_0(y_0)
              + \sum_k \log B_{k+1}(y_k \mid y_{k+1}) - \log F_k(y_{k+1} \mid y_k), \qquad \mathbb{E}[w] = Z

    The weights are those of whole paths, and unbiased however well the sampler was trained; their spread is what
    training makes small. :func:`~sciflow.inference.variational.sampler_training.fit_diffusion_sampler` trains one.

    Args:
        density: Target. It is a function, which no file can hold: :meth:`load` takes it again.
        base: Where paths start; its whitened coordinates are those that are worked in.
        num_steps: Steps of a path.
        hidden: Width of the network's two hidden layers.

    Attributes:
        elbo: Lower bound on log Z, nats: mean log weight of the paths that end in the support, plus the logarithm of
            their share. NaN before training.
        elbo_error: Its standard error.
        num_updates: For how long it was trained.
        ended: Why training stopped.

    Raises:
        ConfigError: A number is out of range.
        ShapeError: The base has another dimension than the density.

    Source:
        Controlled Monte Carlo diffusion, Vargas et al., arXiv:2307.01050.

    Example:
        >>> density = LogDensity(lambda x: -0.5 * ((x - 1) ** 2).sum(-1), event_shape=2)
        >>> base = FullGaussian(torch.zeros(2).double(), torch.eye(2).double())
        >>> sampler = DiffusionSampler(density, base, num_steps=8)
        >>> draws, log_weights = sampler.draw(2000, torch.Generator().manual_seed(0))
        >>> abs(float(log_weights.logsumexp(0)) - math.log(2000) - 1.8379) < 0.2  # log 2 pi
        True
    """

    mean: Tensor
    lower: Tensor

    def __init__(self, density: LogDensity, base: FullGaussian, num_steps: int = 16, hidden: int = 64) -> None:
        super().__init__()
        arguments = Arguments("DiffusionSampler")
        num_steps = arguments.whole("num_steps", num_steps, 1, 10_000)
        hidden = arguments.whole("hidden", hidden, 1, 1 << 14)
        d = density.num_features
        if base.mean.shape != (d,) or base.lower.shape != (d, d):
            raise ShapeError(
                f"base: a Gaussian of {d} numbers expected, as log_density has; got {list(base.mean.shape)}"
            )
        if not (
            torch.isfinite(base.mean).all() and torch.isfinite(base.lower).all() and base.lower.diagonal().gt(0).all()
        ):
            raise DataError("base: mean and root of the covariance must be finite, with a positive diagonal")
        self.arguments: dict[str, Any] = {"num_features": d, **arguments.values}
        self.density = density
        self.num_steps = num_steps
        self.kernels = ControlledLangevin(d, num_steps, hidden)
        self.register_buffer("mean", base.mean.clone())
        self.register_buffer("lower", base.lower.clone())
        self.to(density.device, density.dtype)
        self.elbo, self.elbo_error, self.num_updates, self.ended = math.nan, math.nan, 0, "not trained"

    @property
    def base(self) -> FullGaussian:
        """Where paths start."""
        return FullGaussian(self.mean, self.lower)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw rows with the weights that correct them.

        Args:
            n: How many.
            generator: Of everything that is drawn.

        Returns:
            Unconstrained rows ``[n, d]``, and log weights ``[n]``: -inf outside the support. The logarithm of their
            mean weight estimates log Z, and the mean weight estimates Z without bias.

        Raises:
            ConfigError: ``n`` is not a positive whole number.
        """
        n = Arguments("draw").whole("n", n, 1, 1 << 30)
        found = []
        with torch.no_grad():
            for start in range(0, n, _ROWS_AT_A_TIME):
                trail = self.trail(min(_ROWS_AT_A_TIME, n - start), generator)
                found.append((self.mean + trail.y[-1] @ self.lower.T, self.log_weights(trail)))
        return torch.cat([x for x, _ in found]), torch.cat([w for _, w in found])

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows."""
        return self.mean.dtype

    def sample(self, n: int, seed: int | torch.Generator | None = None) -> Tensor:
        """Draw unconstrained rows ``[n, d]``, without their weights.

        Args:
            n: How many.
            seed: Of the draws, or their generator; None draws from torch's own generator.
        """
        return self.draw(n, _generator(seed))[0]

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of the draws themselves at rows ``[n, d]``, before weights; see :meth:`likelihood`."""
        return self.likelihood(u).log_prob

    def likelihood(self, u: Tensor, num_draws: int = 64, seed: int | torch.Generator = 0) -> Likelihood:
        r"""Log density of the draws themselves, before weights, estimated by paths back to the base.

        .. math:: q(y_K) = \mathbb{E}_{B}\Big[ q_0(y_0) \prod_k \frac{F_k(y_{k+1} \mid y_k)}{B_{k+1}(y_k \mid y_{k+1})}
                  \Big]

        The mean of ``num_draws`` ratios estimates q without bias. Its logarithm is low on average, by half the squared
        standard error where that is small, and right in the limit of many paths.

        Args:
            u: Unconstrained rows ``[n, d]``.
            num_draws: Paths back from every row.
            seed: Of their noise, or its generator.

        Returns:
            A record ``[n]`` of kind ``"elbo"``, nats. An error that is not small beside 1 is none to trust: a few paths
            carry the mean then.

        Raises:
            ShapeError: Rows of another length.
            DataError: A row has numbers that are not finite.
        """
        num_draws = Arguments("likelihood").whole("num_draws", num_draws, 4, 1 << 20)
        d = len(self.mean)
        if u.ndim != 2 or u.shape[1] != d:
            raise ShapeError(f"log_prob: rows [n, {d}] expected; got {list(u.shape)}")
        if not torch.isfinite(u).all():
            raise DataError("log_prob: a row has numbers that are not finite")
        generator = _generator(seed)
        y = torch.linalg.solve_triangular(self.lower, (u.to(self.mean) - self.mean).T, upper=False).T
        ratios = []
        with torch.no_grad():
            for part in y.split(max(1, _ROWS_AT_A_TIME // num_draws)):
                trail = self.trail_back(part.repeat_interleave(num_draws, 0), generator)
                ratios.append(-self.log_ratio(trail).reshape(len(part), num_draws))
        log_ratio = torch.cat(ratios).T - self.lower.diagonal().log().sum()
        none = torch.zeros_like(log_ratio)
        nfe = torch.full_like(log_ratio, self.num_steps + 1, dtype=torch.int32)
        return importance_weighted(Likelihood(log_ratio, none, nfe, none.int(), "exact"))

    def trail(self, n: int, generator: torch.Generator, through: bool = False) -> Trail:
        """Paths of ``n`` rows from the base to the target; ``through`` lets gradients follow them."""
        y = self.trail_start(n, generator).requires_grad_(through)
        log_p, score = self.target(y, through)
        rows, scores = [y], [score]
        for k in range(self.num_steps):
            y = self.step(k, y, score, generator)
            if y.requires_grad:
                y.register_hook(_finite_rows)
            log_p, score = self.target(y, through)
            rows.append(y)
            scores.append(score)
        return Trail(rows, scores, log_p)

    def trail_start(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows ``[n, d]`` of the base, in its own coordinates."""
        return self._normal((n, len(self.mean)), generator)

    def trail_back(self, y: Tensor, generator: torch.Generator) -> Trail:
        """Paths from rows ``[n, d]`` at the last time back to the base."""
        log_p, score = self.target(y)
        rows, scores = [y], [score]
        for k in range(self.num_steps, 0, -1):
            _, (mean, log_std) = self.kernels(slice(k, k + 1), y[None], score[None])
            y = _kept_near(mean[0] + log_std[0].exp() * self._normal(y.shape, generator))
            score = self.target(y)[1]
            rows.append(y)
            scores.append(score)
        return Trail(rows[::-1], scores[::-1], log_p)

    def step(self, k: int, y: Tensor, score: Tensor, generator: torch.Generator) -> Tensor:
        """Rows ``[n, d]`` of time ``k`` moved to the next."""
        (mean, log_std), _ = self.kernels(slice(k, k + 1), y[None], score[None])
        return _kept_near(mean[0] + log_std[0].exp() * self._normal(y.shape, generator))

    def log_weights(self, trail: Trail) -> Tensor:
        """Log weights ``[n]`` of paths, differentiable in the kernels."""
        return trail.log_p + self.log_ratio(trail)

    def log_ratio(self, trail: Trail) -> Tensor:
        """Log density of paths backwards given their last row, minus that forwards: ``[n]``."""
        on, back = self.kernels(slice(0, self.num_steps + 1), trail.y, trail.scores)
        forth = gaussian_log_prob(trail.y[1:], (on[0][:-1], on[1][:-1])).sum(0)
        backwards = gaussian_log_prob(trail.y[:-1], (back[0][1:], back[1][1:])).sum(0)
        start = trail.y[0]
        return backwards - forth - gaussian_log_prob(start, (torch.zeros_like(start), torch.zeros_like(start)))

    def target(self, y: Tensor, through: bool = False) -> tuple[Tensor, Tensor]:
        """Target's log density ``[n]`` and score ``[n, d]``, in the coordinates of the base."""
        u = self.mean + y @ self.lower.T
        log_det = self.lower.diagonal().log().sum()
        if not through:
            value, gradient = self.density.with_gradient(u)
            return value + log_det, gradient @ self.lower
        value, inside = self.density.differentiable(u)
        (gradient,) = torch.autograd.grad(value.sum(), u, create_graph=True)
        usable = inside & torch.isfinite(gradient).all(-1)
        score = torch.where(usable[:, None], gradient, 0.0) @ self.lower
        return torch.where(inside, value + log_det, -math.inf), score

    def save(self, folder: str | Path) -> Path:
        """Write all but the density into a folder: numbers as safetensors, and what they are as JSON.

        Raises:
            ModelFileError: The folder cannot be written.
        """
        path = Path(folder)
        weights = safetensors.torch.save({name: t.detach().contiguous() for name, t in self.state_dict().items()})
        found = {name: getattr(self, name) for name in ("elbo", "elbo_error", "num_updates", "ended")}
        description = {
            "format": _FORMAT,
            "version": _VERSION,
            "arguments": self.arguments,
            "found": {name: None if value != value else value for name, value in found.items()},
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            with written_whole(path / _DESCRIPTION) as text, written_whole(path / _WEIGHTS) as numbers:
                write_to_disk(numbers, weights)
                write_to_disk(text, (json.dumps(description, indent=2, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise ModelFileError(f"the sampler cannot be saved in {path}: {error.strerror or error}") from None
        return path

    @classmethod
    def load(cls, folder: str | Path, density: LogDensity) -> DiffusionSampler:
        """Read back what :meth:`save` wrote.

        Args:
            folder: Where it is.
            density: That which it was trained on.

        Raises:
            ModelFileError: A file is missing or damaged.
            ShapeError: The density has another number of features.
        """
        path = Path(folder)
        try:
            description = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
            weights = (path / _WEIGHTS).read_bytes()
        except (OSError, ValueError) as error:
            raise ModelFileError(f"no sampler can be read from {path}: {first_line(error)}") from None
        if not isinstance(description, dict) or (description.get("format"), description.get("version")) != (
            _FORMAT,
            _VERSION,
        ):
            raise ModelFileError(f"{path / _DESCRIPTION} does not describe a sampler of format {_VERSION}")
        if hashlib.sha256(weights).hexdigest() != description.get("sha256"):
            raise ModelFileError(f"{path / _WEIGHTS} is damaged: its SHA-256 differs from {_DESCRIPTION}'s")
        with contextlib.suppress(KeyError, TypeError):
            size = description["arguments"]["num_features"]
            if size != density.num_features:
                raise ShapeError(f"{path}: the sampler is of {size} numbers, the density of {density.num_features}")
        try:
            arguments = {k: v for k, v in description["arguments"].items() if k != "num_features"}
            unit = torch.eye(density.num_features, dtype=density.dtype)
            sampler = cls(density, FullGaussian(unit[0], unit), **arguments)
            sampler.load_state_dict(safetensors.torch.load(weights))
            for name, value in description["found"].items():
                if name not in ("elbo", "elbo_error", "num_updates", "ended"):
                    raise KeyError(name)
                setattr(sampler, name, math.nan if value is None else value)
        except (ConfigError, KeyError, TypeError, AttributeError, RuntimeError, safetensors.SafetensorError) as error:
            raise ModelFileError(f"{path}: what is in it is no sampler: {first_line(error)}") from None
        return sampler

    def _normal(self, shape: Any, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)


def _finite_rows(gradient: Tensor) -> Tensor:
    return torch.where(torch.isfinite(gradient).all(-1, keepdim=True), gradient, 0.0)


def _kept_near(y: Tensor) -> Tensor:
    """Rows within what floating point can square; hardly one in any run is not, and its weight is as good as zero."""
    return y.clamp(-_FURTHEST, _FURTHEST)


def is_diffusion_sampler(folder: str | Path) -> bool:
    """Whether a folder holds what :meth:`DiffusionSampler.save` wrote."""
    return (Path(folder) / _DESCRIPTION).is_file()


def _generator(seed: int | torch.Generator | None) -> torch.Generator:
    if seed is None:
        return torch.default_generator
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(Arguments("sample").whole("seed", seed, 0, MOST_SEED))
