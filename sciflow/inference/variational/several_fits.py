"""Several fits of one posterior, here or on Ray workers, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sciflow.arguments import Arguments, named
from sciflow.errors import ConfigError, SciflowError, TrainingError, first_line
from sciflow.inference.conditional.randomness import child_seed
from sciflow.inference.posterior import Posterior
from sciflow.inference.psis import USABLE
from sciflow.inference.variational.families import FAMILIES
from sciflow.inference.variational.log_density import LogDensity
from sciflow.inference.variational.mixing import can_be_mixed, mixed
from sciflow.scoring.distributed import each_here, each_on_ray, require_sendable
from sciflow.scoring.process import one_thread

__all__ = ["best_of", "disagreement", "several_fits"]

_MOST_FITS = 1024
_APART, _SLACK = 3.0, 0.05  # standard errors, and nats, by which estimates of log Z may differ
_OURS = ("num_fits", "keep", "num_workers", "address")


def several_fits(fit: Callable[..., Posterior], target: LogDensity, given: Mapping[str, Any]) -> Posterior:
    r"""Fit as often as is asked for, each time by a seed of its own, and keep the best or a mixture of all.

    The seed of a fit follows from the seed and the number of the fit: the result is the same here and on any number of
    workers. A fit that fails is noted, and the others go on.

    Args:
        fit: Fits once; takes what is given, but for how often and where.
        target: What is fitted to.
        given: What :func:`~sciflow.inference.fit_posterior` was called with.

    Returns:
        The posterior, whose ``history["fits"]`` tells of each fit.

    Raises:
        ConfigError: An argument is out of range, or the function cannot be sent to workers.
        SciflowError: All fits failed: as the first of them did.
    """
    arguments = Arguments("fit_posterior")
    num_fits = arguments.whole("num_fits", given["num_fits"], 1, _MOST_FITS)
    keep = arguments.choice("keep", given["keep"], ["best", "mixture"]) if num_fits > 1 else "best"
    workers, address = given["num_workers"], given["address"]
    if workers is not None:
        workers = arguments.whole("num_workers", workers, 1, 1 << 20)
    if keep == "mixture":
        _require_flows(given["family"])
    once = {name: value for name, value in given.items() if name not in _OURS} | {"progress": False, "observed": None}
    found = _fitted(fit, once, num_fits, workers, address, given["progress"])
    fits = {number: result for number, result in found.items() if isinstance(result, Posterior)}
    failed = {number: result for number, result in found.items() if not isinstance(result, Posterior)}
    if not fits:
        _raise(failed)
    notes = [
        f"Fit {number + 1} of {num_fits} failed: {type(error).__name__}: {first_line(error).rstrip('.')}."
        for number, error in sorted(failed.items())
    ]
    posteriors = [fits[number] for number in sorted(fits)]
    notes += disagreement(posteriors)
    if keep == "best":
        place = best_of(posteriors)
        result = posteriors[place]
        notes.append(f"Kept is fit {sorted(fits)[place] + 1} of {num_fits}.")
        weights = None
    else:
        result, weights = mixed(posteriors, target, once["num_draws"], child_seed(once["seed"], num_fits))
    result.notes = [*result.notes, *notes]
    result.observed = given["observed"]
    result.history = {**result.history, "fits": [_told(posterior) for posterior in posteriors]}
    if weights is not None:
        result.history["weights"] = weights
    return result


def best_of(posteriors: Sequence[Posterior]) -> int:
    """Which is the best: of the highest ELBO among those whose k-hat is usable; where none is, of the lowest k-hat.

    The ELBO counts what a fit misses, which k-hat, of the fit's own draws, cannot see; that of a fit whose weights are
    of no use may be high by chance.
    """
    usable = [i for i, posterior in enumerate(posteriors) if posterior.k_hat <= USABLE]
    if usable:
        return max(usable, key=lambda i: posteriors[i].elbo)
    return min(range(len(posteriors)), key=lambda i: posteriors[i].k_hat)


def disagreement(posteriors: Sequence[Posterior]) -> list[str]:
    """Say whether the fits' log Z are further apart than their errors allow."""
    ordered = sorted((posterior.log_z for posterior in posteriors), key=float)
    low, high = ordered[0], ordered[-1]
    allowed = _APART * (low.standard_error**2 + high.standard_error**2) ** 0.5 + _SLACK
    if float(high) - float(low) <= allowed:
        return []
    return [
        f"The fits disagree: log Z is {float(low):.3f} +- {low.standard_error:.2g} by one and {float(high):.3f} +- "
        f"{high.standard_error:.2g} by another: some of them miss a part of the posterior, such as a mode."
    ]


def _fitted(
    fit: Callable[..., Posterior],
    once: Mapping[str, Any],
    num_fits: int,
    workers: int | None,
    address: str | None,
    progress: bool,
) -> dict[int, Posterior | Exception]:
    """Each fit, or why there is none."""
    found: dict[int, Posterior | Exception] = {}

    def work(number: int) -> Posterior | Exception:
        try:
            with one_thread():
                return fit(**{**once, "seed": child_seed(once["seed"], number)})
        except SciflowError as error:
            return error
        except Exception as error:
            # Of the user's own kinds, another process may know nothing.
            return TrainingError(f"{type(error).__name__}: {first_line(error)}")

    if workers is None and address is None:
        each_here(lambda number: found.update({number: work(number)}), range(num_fits), "fitting", progress)
        return found
    require_sendable(once["log_density"], "log_density")
    use_gpu = torch.device(once["device"]).type == "cuda"

    def receive(number: int, result: Posterior | Exception) -> None:
        found[number] = result

    each_on_ray(work, range(num_fits), "fitting", address, use_gpu, progress, workers, receive)
    return found


def _require_flows(family: Any) -> None:
    """Refuse to mix what has no place in a mixture, before it is fitted."""
    name, _ = named("family", family, [*FAMILIES])
    if not can_be_mixed(FAMILIES[name].get("name", name)):
        raise ConfigError(f"fit_posterior: keep='mixture' mixes flows, and family {name!r} is none: take keep='best'")


def _raise(failed: Mapping[int, Posterior | Exception]) -> None:
    first = failed[min(failed)]
    kind = type(first) if isinstance(first, SciflowError) else TrainingError
    if len(failed) == 1:
        raise kind(str(first)) from None
    raise kind(f"all {len(failed)} fits failed; the first of them: {first}") from None


def _told(posterior: Posterior) -> dict[str, Any]:
    """What is noted of one fit, as JSON can hold it."""
    return {
        "elbo": posterior.elbo,
        "elbo_error": posterior.elbo_error,
        "log_z": posterior.log_z.value,
        "log_z_error": posterior.log_z.standard_error,
        "ess": posterior.ess,
        "k_hat": posterior.k_hat if abs(posterior.k_hat) < float("inf") else str(posterior.k_hat),
        "ended": posterior.history.get("ended", ""),
    }
