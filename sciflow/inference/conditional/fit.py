"""From a prior and a simulator, or simulations that are there, to posteriors of any observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import is_number
from sciflow.arrays import numbers
from sciflow.data.store import Store, is_url, open_store
from sciflow.density import Density
from sciflow.errors import ConfigError, DataError, LayoutError, ShapeError
from sciflow.inference.conditional.direct import Direct
from sciflow.inference.conditional.methods import Method
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.randomness import child_seed
from sciflow.inference.conditional.result import ConditionalPosterior
from sciflow.inference.conditional.simulate import Where, beside
from sciflow.inference.conditional.simulating import Proposal, Simulating, open_simulations
from sciflow.inference.conditional.simulations import Part, Simulations, given_arrays
from sciflow.inference.conditional.simulator import Simulator, pilot
from sciflow.inference.conditional.task import LEAST_SIMULATIONS, Task
from sciflow.inference.conditional.training_store import write_training_store
from sciflow.inference.conditional.truncated import Truncated

__all__ = ["fit_conditional"]

_LEFT_OUT = 1e-4  # of the posterior, by each truncation of the prior


def fit_conditional(
    simulations: Any = None,
    *,
    prior: Any = None,
    simulator: Any = None,
    num_simulations: int = 1000,
    method: str = "npe",
    density: Density | Mapping[str, Any] | None = None,
    embedding: Any = None,
    members: int | None = None,
    rounds: int = 1,
    x_observed: Any = None,
    store: str | Path | None = None,
    num_workers: int | None = None,
    address: str | None = None,
    local: bool = False,
    timeout: float | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> ConditionalPosterior:
    r"""Learn the posteriors of a simulator, once for all observations.

    .. math:: \min_q \; E_{\theta \sim p(\theta)} \, E_{x \sim p(x \mid \theta)} \, \big[ -\log q(\theta \mid x) \big]

    is smallest where :math:`q` is the posterior, for every observation at once. The simulator is called, and never
    written down. Draws are within the support of the prior: half-lines are mapped to all real numbers, and of intervals
    what leaks out is drawn again, and log p renormalised.

    Methods:

    - ``"npe"``: spline flows of the parameters given the observation; Papamakarios and Murray, arXiv:1605.06376.
    - ``"fmpe"``: a flow with continuous time, by flow matching; Dax et al., arXiv:2305.17161.
    - ``"npse"``: a diffusion model; Sharrock et al., arXiv:2210.04872.
    - ``"nle"``: a flow of the observation given the parameters, which the prior makes a posterior of; Papamakarios et
      al., arXiv:1805.07226. Draws take longer: a population is tempered from prior to posterior.

    Several densities (``members``) are fitted, with other initial weights and, in memory, another share held out, and
    count the same: where simulations are few, their mixture is nearer to the posterior than any of them.

    Args:
        simulations: Those that are there: a pair ``(theta, x)``, a mapping with both, or the folder of a store that was
            written by ``store=`` or by :func:`sciflow.shard`. None to make them.
        prior: A distribution of ``torch.distributions``, anything with ``sample((n,))`` and ``log_prob(theta)``, or a
            function of the number of draws, which may ask for a ``seed``, ``generator`` or ``rng`` by name. Without
            log_prob there is no ``nle``, and bounds are not known.
        simulator: A function from parameters ``[n, d]`` to observations ``[n, *x_shape]``, or from one row to one
            observation; of torch or NumPy. It may ask for a ``seed``, ``generator`` or ``rng`` by name; what it draws
            otherwise is seeded, too.
        num_simulations: How many are made, in all rounds together.
        method: ``"npe"``, ``"fmpe"``, ``"npse"`` or ``"nle"``.
        density: One that is not fitted yet, or a workflow's ``model`` section, such as ``{"name": "maf"}``; None for
            the method's own.
        embedding: What reads structured observations: ``"mlp"``, ``"rows"``, ``"convolution"``, with sizes
            ``{"rows": {"num_features": 16}}``; a module; or a kind of context, such as
            ``Tokens(100, features=3)``. None by the shape: vectors as they are, all else by convolutions.
        members: How many densities are fitted; None for the method's own number.
        rounds: With more than one, later simulations are made where the posterior of ``x_observed`` is, and the result
            is for that observation; see :class:`sciflow.inference.conditional.truncated.Truncated`.
        x_observed: The observation, where there are several rounds.
        store: Folder that simulations are written to, by Ray; the same call goes on where one was interrupted, and
            training streams from disk. None keeps them in memory, and makes them in this process.
        num_workers: Simulations at a time on Ray; None for all cores.
        address: Of a running Ray cluster; None starts one on this machine for the time being.
        local: Make them in this process, although there is a store.
        timeout: Seconds that one call of the simulator may take; it then runs in a process of its own.
        dtype: ``"float32"`` or ``"float64"``, of simulations and density.
        overwrite: Replace simulations that are already in ``store``.
        seed: Of parameters, simulations, weights and training.
        progress: Show progress bars on a terminal.
        **settings: Of training, as :func:`sciflow.fit` takes them, such as ``max_steps=500``.

    Returns:
        Posteriors of any observation.

    Raises:
        ConfigError: Arguments do not go together, or are out of range.
        DataError: Nothing comes out of prior or simulator, most simulations fail, or there are too few.
        ShapeError: Parameters are no vectors, or numbers of rows differ.
        StoreError: Other simulations are in ``store``, or it is damaged.
        TrainingError: The loss is not finite.

    Example:
        >>> from torch.distributions import Uniform
        >>> prior = Uniform(torch.zeros(2), torch.ones(2))
        >>> simulate = lambda theta: theta + 0.1 * torch.randn_like(theta)
        >>> npe = fit_conditional(prior=prior, simulator=simulate, num_simulations=300, members=1, max_steps=20)
        >>> npe.posterior([0.5, 0.5]).sample(4, seed=0).shape
        torch.Size([4, 2])
    """
    task = Task.of(method, density, embedding, members, dtype, seed, progress, settings)
    where = Where.of(store, num_workers, address, local, overwrite, progress)
    known = None if prior is None else Prior(prior)
    _require_prior(task.method, known)
    if rounds != 1 or x_observed is not None:
        _require_rounds(rounds, x_observed, simulations, task.method)
    if simulations is not None:
        if simulator is not None:
            raise ConfigError("simulations and simulator are both given: give the one or the other")
        return _of_given(task, simulations, known)
    if known is None or simulator is None:
        missing = "prior" if known is None else "simulator"
        raise ConfigError(f"{missing}: missing; give prior and simulator, or simulations (theta, x) that are there")
    _require_numbers(num_simulations, timeout)
    built, witness = pilot(simulator, known, task.seed, task.dtype, timeout)
    observed = None if x_observed is None else _observed(x_observed, built)
    proposal: Proposal = known
    parts: list[Part] = []
    with where.folder() as folder:
        for number in range(rounds):
            share = num_simulations // rounds + (number < num_simulations % rounds)
            place = "" if folder is None else folder if number == 0 else beside(folder, f"round{number + 1}")
            job = Simulating(
                proposal, built, share, child_seed(task.seed, number), known.num_parameters, witness, place
            )
            parts.append(where.make(job))
            found = Simulations(parts, built.x_shape)
            result = task.fit(found, known, None if folder is None else _streamed(task, found, folder))
            if number + 1 < rounds:
                assert observed is not None
                assert isinstance(result.known, Direct)
                proposal = Truncated.of(known, result.known, observed, _LEFT_OUT, child_seed(task.seed, number, 9))
    return result if rounds == 1 else replace(result, x_observed=observed)


def _of_given(task: Task, simulations: Any, prior: Prior | None) -> ConditionalPosterior:
    """Fit to simulations that a user has."""
    if isinstance(simulations, Store):
        simulations = simulations.path
    if not isinstance(simulations, str | Path):
        found = given_arrays(simulations, task.dtype)
        return task.fit(found if prior is None else _off_bounds(found, prior), prior, None)
    part = open_simulations(simulations)
    if part is not None:
        found = Simulations([part], tuple(part.x.shape[1:]))
        if is_url(simulations):
            return task.fit(found, prior, None)
        return task.fit(found, prior, _streamed(task, found, str(simulations)))
    store = open_store(simulations)
    if store.context_shape is None or len(store.event_shape) != 1:
        raise LayoutError(
            f"{store.path}: its events have shape {list(store.event_shape)} and "
            f"{'no context' if store.context_shape is None else 'a context'}: parameters are to be the event, a vector "
            "each, and what was observed the context: shard it with context=..."
        )
    if task.method.event == "x":
        raise ConfigError(
            "method nle: give the simulations as a pair (theta, x): in this store the parameters are the event"
        )
    rows = store.train
    read = Part(rows, rows.context, {}, len(rows))
    return task.fit(Simulations([read], store.context_shape), prior, store)


def _off_bounds(simulations: Simulations, prior: Prior) -> Simulations:
    """Simulations none of whose parameters is on a bound, where bijections have no value.

    Raises:
        DataError: Some are outside, or of another number than the prior's.
    """
    (part,) = simulations.parts
    theta = torch.from_numpy(part.theta)
    if theta.shape[1] != prior.num_parameters:
        raise DataError(f"prior: of {prior.num_parameters} parameters, and the simulations have {theta.shape[1]}")
    outside = torch.nonzero(~prior.support.contains(theta))
    if len(outside):
        raise DataError(
            f"simulations: {len(outside):,} rows of theta are outside the prior's support, first row "
            f"{int(outside[0])}: give the prior that they were drawn from"
        )
    return replace(simulations, parts=[replace(part, theta=prior.support.within(theta).numpy())])


def _streamed(task: Task, simulations: Simulations, place: str) -> Store | None:
    """The simulations as training streams them; on this file system alone, elsewhere they are read into memory."""
    if is_url(place):
        return None
    path = Path(beside(place, f"of-{task.method.event}"))
    return write_training_store(simulations, path, task.method.event, task.seed, task.dtype)


def _observed(x: Any, simulator: Simulator) -> Tensor:
    """The observation of later rounds, flat."""
    values = torch.from_numpy(numbers(x, "x_observed").astype(simulator.dtype))
    if tuple(values.shape) != simulator.x_shape:
        raise ShapeError(f"x_observed: one observation {list(simulator.x_shape)} expected; got {list(values.shape)}")
    if not torch.isfinite(values).all():
        raise DataError("x_observed: it has missing or infinite values: fill or leave out what is missing")
    return values.flatten()


def _require_prior(method: Method, prior: Prior | None) -> None:
    if method.event == "x" and (prior is None or not prior.has_log_prob):
        what = "a prior" if prior is None else "the prior's log_prob"
        raise ConfigError(f"method {method.name}: posteriors need {what}; give it, or choose npe, fmpe or npse")


def _require_rounds(rounds: Any, x_observed: Any, simulations: Any, method: Method) -> None:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"rounds {rounds!r:.80}: 1 or more")
    if rounds == 1:
        raise ConfigError("x_observed does nothing with rounds=1: give rounds=2 or more, or leave it out")
    if x_observed is None:
        raise ConfigError(f"rounds {rounds}: give x_observed, for which the later rounds simulate")
    if simulations is not None:
        raise ConfigError(f"rounds {rounds}: later rounds simulate anew: give prior and simulator, not simulations")
    if method.event == "x":
        raise ConfigError(f"rounds {rounds}: not with method {method.name}: choose npe, fmpe or npse")


def _require_numbers(num_simulations: Any, timeout: Any) -> None:
    whole = isinstance(num_simulations, int) and not isinstance(num_simulations, bool)
    if not whole or num_simulations < LEAST_SIMULATIONS:
        raise ConfigError(
            f"num_simulations {num_simulations!r:.80}: a whole number expected, {LEAST_SIMULATIONS} or more"
        )
    if timeout is not None and not (is_number(timeout) and timeout > 0):
        raise ConfigError(f"timeout {timeout!r:.80}: seconds expected, more than 0")
