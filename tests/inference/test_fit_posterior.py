"""Variational inference against densities whose log Z, moments and modes are known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sciflow as sf
from sciflow.errors import ConfigError, DataError, ModelFileError
from sciflow.inference import Posterior, fit_posterior, ordered, positive, real, simplex
from sciflow.inference.evidence import Evidence
from sciflow.inference.variational.fit_posterior import notes_on_particles
from sciflow.inference.variational.training import Progress

QUICK: dict[str, Any] = {"num_particles": 512, "max_steps": 100, "num_draws": 4000, "progress": False, "seed": 0}
MATRIX = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 2.0]], dtype=torch.float64)
MEAN = torch.tensor([10.0, -300.0, 0.01], dtype=torch.float64)


def gaussian(x: Tensor) -> Tensor:
    """A Gaussian far from the origin, of correlated features, times e^7."""
    noise = torch.linalg.solve_triangular(MATRIX.to(x), (x - MEAN.to(x)).mT, upper=False)
    return 7 - 0.5 * noise.square().sum(-2) - MATRIX.diagonal().log().sum() - 1.5 * math.log(2 * math.pi)


def two_modes(x: Tensor) -> Tensor:
    """Three quarters about (-8, 0), a quarter about (8, 0), standard deviation 0.5."""
    apart = torch.stack([x - x.new_tensor([-8.0, 0.0]), x - x.new_tensor([8.0, 0.0])])
    heights = -0.5 * (apart / 0.5).square().sum(-1) - math.log(2 * math.pi * 0.25)
    return torch.logsumexp(heights + x.new_tensor([[0.75], [0.25]]).log(), 0)


@pytest.fixture(scope="module")
def fitted() -> Posterior:
    return fit_posterior(gaussian, event_shape=(3,), **QUICK)


PARAMETERS = {"tau": positive, "p": simplex(3), "cut": ordered(2)}


@pytest.fixture(scope="module")
def named() -> Posterior:
    """Gamma(3, 2), a Dirichlet(2, 3, 4) and two ordered normals, whose log Z is known."""

    def log_density(tau: Tensor, p: Tensor, cut: Tensor) -> Tensor:
        gamma = 2 * torch.log(tau) - 2 * tau
        dirichlet = torch.log(p) @ p.new_tensor([1.0, 2.0, 3.0])
        return gamma + dirichlet - 0.5 * cut.square().sum(-1)

    return fit_posterior(log_density, parameters=PARAMETERS, family={"flow": {"num_transforms": 2}}, **QUICK)


class TestGaussian:
    def test_log_z_is_right(self, fitted: Posterior) -> None:
        assert abs(float(fitted.log_z) - 7) < 0.01 + 3 * fitted.log_z.standard_error

    def test_log_prob_is_that_of_the_density(self, fitted: Posterior) -> None:
        x = fitted.sample(1000, seed=1)
        assert (fitted.log_prob(x) - (gaussian(x) - 7)).abs().mean() < 0.2

    def test_moments_are_right(self, fitted: Posterior) -> None:
        x = fitted.resample(20_000)
        std = (MATRIX @ MATRIX.T).diagonal().sqrt()
        assert ((x.mean(0) - MEAN) / std).abs().max() < 0.05
        assert (x.std(0) / std - 1).abs().max() < 0.05

    def test_the_verdict_is_good(self, fitted: Posterior) -> None:
        assert fitted.k_hat < 0.5
        assert fitted.ess > 0.9
        assert "(good)" in repr(fitted)
        assert "close to the posterior" in fitted.verdict

    def test_the_elbo_is_below_log_z(self, fitted: Posterior) -> None:
        assert fitted.elbo <= float(fitted.log_z) + 3 * fitted.elbo_error + 3 * fitted.log_z.standard_error

    def test_the_same_seed_gives_the_same_fit(self) -> None:
        first, second = (fit_posterior(gaussian, event_shape=(3,), **QUICK | {"max_steps": 20}) for _ in range(2))
        assert torch.equal(first.sample(5, seed=0), second.sample(5, seed=0))

    def test_the_callers_random_numbers_are_left_alone(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        fit_posterior(gaussian, event_shape=(3,), family="gaussian", **QUICK | {"max_steps": 0})
        assert torch.equal(torch.rand(3), expected)


class TestModes:
    def test_are_all_found_with_their_weights(self) -> None:
        posterior = fit_posterior(two_modes, event_shape=2, **QUICK)
        share = (posterior.resample(20_000)[:, 0] > 0).double().mean()
        assert abs(share - 0.25) < 0.03
        assert abs(float(posterior.log_z)) < 0.02 + 3 * posterior.log_z.standard_error


class TestNamedParameters:
    def test_log_z_counts_the_jacobians(self, named: Posterior) -> None:
        """Normalising constants of Gamma and Dirichlet, and half of that of two normals."""
        gamma = math.lgamma(3) - 3 * math.log(2)
        dirichlet = math.lgamma(2) + math.lgamma(3) + math.lgamma(4) - math.lgamma(9)
        expected = gamma + dirichlet + math.log(2 * math.pi) - math.log(2)
        assert abs(float(named.log_z) - expected) < 0.02 + 3 * named.log_z.standard_error

    def test_draws_fit_their_constraints(self, named: Posterior) -> None:
        for draws in (named.sample(500, seed=0), named.resample(500)):
            assert (draws["tau"] > 0).all()
            assert torch.allclose(draws["p"].sum(-1), torch.ones(500, dtype=torch.float64))
            assert (draws["cut"].diff(dim=-1) > 0).all()

    def test_moments_are_right(self, named: Posterior) -> None:
        draws = named.resample(20_000)
        assert abs(draws["tau"].mean() - 1.5) < 0.05
        assert (draws["p"].mean(0) - torch.tensor([2, 3, 4]) / 9).abs().max() < 0.02

    def test_log_prob_is_in_their_own_units(self, named: Posterior) -> None:
        """The mean of prior over q under draws of q is 1: for tau alone, by importance."""
        draws = named.sample(4000, seed=2)
        gamma = 2 * torch.log(draws["tau"]) - 2 * draws["tau"]
        dirichlet = torch.log(draws["p"]) @ torch.tensor([1.0, 2.0, 3.0]).double()
        log_p = gamma + dirichlet - 0.5 * draws["cut"].square().sum(-1) - float(named.log_z)
        assert abs((log_p - named.log_prob(draws)).exp().mean() - 1) < 0.05

    def test_the_summary_has_a_row_a_number(self, named: Posterior) -> None:
        table = named.summary()
        assert list(table.index) == ["tau", "p[0]", "p[1]", "p[2]", "cut[0]", "cut[1]"]
        assert abs(table.loc["tau", "mean"] - 1.5) < 0.05
        assert (table["q5"] < table["q50"]).all()

    def test_arviz_reads_it(self, named: Posterior) -> None:
        named.observed = {"y": np.arange(4.0)}
        tree = named.to_arviz(num_draws=100)
        with pytest.raises(ConfigError, match="num_draws must be 1"):
            named.to_arviz(num_draws=-1)
        assert dict(tree["posterior"].sizes) == {"chain": 1, "draw": 100, "p_dim_0": 3, "cut_dim_0": 2}
        assert tree["sample_stats"].attrs["k_hat"] == named.k_hat
        assert tree["observed_data"]["y"].shape == (4,)

    def test_it_is_drawn(self, named: Posterior) -> None:
        assert named.plot().get_label().endswith("as many of the fit, by tau, p[0], p[1], p[2], cut[0].")
        assert named.plot(max_features=3).get_label().endswith("by tau, p[0], cut[0].")
        with pytest.raises(ConfigError, match="names is empty"):
            named.plot([])
        assert named.plot(["tau", "p[1]"]).get_label().endswith("by tau, p[1].")
        with pytest.raises(ConfigError, match="did you mean tau"):
            named.plot(["tua"])


class TestSaved:
    def test_a_posterior_comes_back(self, named: Posterior, tmp_path: Path) -> None:
        back = Posterior.load(named.save(tmp_path / "posterior"))
        assert repr(back) == repr(named)
        assert torch.equal(back.resample(10)["p"], named.resample(10)["p"])
        draws = named.sample(10, seed=3)
        assert torch.allclose(back.log_prob(draws), named.log_prob(draws))

    def test_what_was_observed_comes_back_with_it(self, tmp_path: Path) -> None:
        seen = {"counts": torch.arange(6).reshape(2, 3), "mean": 0.5}
        once = fit_posterior(gaussian, event_shape=(3,), family="gaussian", observed=seen, progress=False)
        back = Posterior.load(once.save(tmp_path / "posterior")).observed
        assert back["counts"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert back["mean"] == 0.5

    def test_a_damaged_one_is_refused(self, named: Posterior, tmp_path: Path) -> None:
        folder = named.save(tmp_path / "posterior")
        (folder / "posterior.json").write_text("{}")
        with pytest.raises(ModelFileError, match="not a description of a posterior"):
            Posterior.load(folder)
        with pytest.raises(ModelFileError, match="cannot be read as a posterior"):
            Posterior.load(tmp_path / "nowhere")


LOG_Z = math.log(2 * math.pi * 9)


def plain(x: Tensor) -> Tensor:
    """An independent Gaussian of standard deviation 3 about 2, not normalised."""
    return -0.5 * ((x - 2) / 3).square().sum(-1)


def banana(x: Tensor) -> Tensor:
    """Of log Z = log pi."""
    return -0.5 * (x[..., 0] ** 2 + (2 * (x[..., 1] - x[..., 0] ** 2)) ** 2)


@pytest.mark.parametrize(
    "family",
    [
        "gaussian",
        "flow",
        "mixture",
        "realnvp",
        "nsf",
        "iaf",
        {"continuous": {"network": {"mlp": {"hidden_features": (16, 16)}}}},
        {"diffusion": {"num_steps": 4, "hidden": 16}},
    ],
    ids=str,
)
def test_every_family_fits_a_gaussian(family: Any) -> None:
    posterior = fit_posterior(plain, event_shape=2, family=family, **QUICK | {"max_steps": 40, "num_draws": 1000})
    assert abs(float(posterior.log_z) - LOG_Z) < 0.05 + 3 * posterior.log_z.standard_error
    assert posterior.k_hat < 0.7


@pytest.mark.parametrize("initial", ["annealed", "pathfinder", "laplace"])
def test_every_start_leads_there(initial: str) -> None:
    asked = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal asked
        asked += x.numel() // 2
        return plain(x)

    posterior = fit_posterior(counted, event_shape=2, initial=initial, family="gaussian", **QUICK)
    assert abs(float(posterior.log_z) - LOG_Z) < 0.01 + 3 * posterior.log_z.standard_error
    assert (asked > 30_000) == (initial == "annealed")


@pytest.mark.parametrize(("annealed", "said"), [(1.5, 1), (1.05, 0), (0.5, 0)])
def test_a_mode_that_particles_are_in_is_missed(annealed: float, said: int) -> None:
    """Only where their log Z is higher, by more than its error and by what matters."""
    particles = SimpleNamespace(evidence=Evidence(annealed, 0.02, "annealed"))
    near, found = (
        SimpleNamespace(initial="annealed", particles=particles),
        SimpleNamespace(log_z=Evidence(1.0, 0.01, "importance")),
    )
    assert len(notes_on_particles(near, found)) == said  # type: ignore[arg-type]


def test_a_mode_that_ascents_were_in_is_missed() -> None:
    lacking = fit_posterior(two_modes, event_shape=2, initial="laplace", family="gaussian", **QUICK)
    assert lacking.k_hat < 0.7
    assert "looks like a mode that the fit lacks: log Z may be too low; try initial='annealed'" in lacking.verdict
    whole = fit_posterior(banana, event_shape=2, initial="laplace", family="gaussian", **QUICK)
    assert "Ascents" not in whole.verdict


@pytest.mark.parametrize(("gap", "enough"), [(0.03, True), (0.06, False)])
def test_tails_that_are_too_wide_are_not_left(gap: float, enough: bool) -> None:
    """Of normal log weights, 94 % in effect leave the bound 0.03 below; what is more is of tails."""
    progress = Progress()
    progress.add(0, elbo=1.0, error=0.01, ess=0.94, k_hat=0.2, gap=gap)
    assert progress.is_enough() == enough


class TestSampleAverage:
    def test_a_density_with_a_hole(self) -> None:
        """Draws fall in and out of it as the Gaussian moves, and the divergence of the others jumps."""

        def holed(x: Tensor) -> Tensor:
            return torch.where(x[..., 0] > 1, math.nan, -0.5 * x.square().sum(-1))

        posterior = fit_posterior(holed, event_shape=2, family="gaussian", **QUICK)
        truth = math.log(math.pi * (1 + math.erf(1 / math.sqrt(2))))
        assert abs(float(posterior.log_z) - truth) < 0.02 + 3 * posterior.log_z.standard_error

    def test_a_gaussian_ends_where_the_divergence_is_least(self) -> None:
        """On a banana, where the bound of a Gaussian can be written down."""
        bound = fit_posterior(banana, event_shape=2, family="gaussian", **QUICK)
        assert bound.history["ended"].startswith("converged: L-BFGS")
        assert abs(bound.elbo - best_gaussian_bound()) < 3 * bound.elbo_error + 0.01

    def test_two_seeds_agree(self) -> None:
        one, two = (fit_posterior(banana, event_shape=2, family="gaussian", **QUICK | {"seed": s}) for s in (1, 2))
        x = one.sample(1000, seed=0)
        assert (one.log_prob(x) - two.log_prob(x)).abs().mean() < 0.1


@pytest.fixture(scope="module")
def diffused() -> Posterior:
    options = {"diffusion": {"num_steps": 4, "hidden": 16}}
    return fit_posterior(
        lambda tau: 2 * torch.log(tau) - 2 * tau,
        parameters={"tau": positive},
        family=options,
        **QUICK | {"max_steps": 60},
    )


class TestDiffusion:
    def test_log_z_is_that_of_a_gamma(self, diffused: Posterior) -> None:
        truth = math.lgamma(3) - 3 * math.log(2)
        assert abs(float(diffused.log_z) - truth) < 0.02 + 3 * diffused.log_z.standard_error
        assert abs(diffused.resample(20_000)["tau"].mean() - 1.5) < 0.05

    def test_log_p_has_an_error(self, diffused: Posterior) -> None:
        tau = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
        found = diffused.likelihood({"tau": tau})
        truth = torch.distributions.Gamma(3.0, 2.0).log_prob(tau)
        assert found.kind == "elbo"
        assert ((found.log_prob - truth).abs() < 0.2 + 3 * found.error).all()
        assert torch.equal(diffused.log_prob({"tau": tau}), found.log_prob)

    def test_it_comes_back_with_its_density(self, diffused: Posterior, tmp_path: Path) -> None:
        folder = diffused.save(tmp_path / "posterior")
        back = Posterior.load(folder, log_density=lambda tau: 2 * torch.log(tau) - 2 * tau)
        assert torch.equal(back.sample(10, seed=1)["tau"], diffused.sample(10, seed=1)["tau"])
        with pytest.raises(ModelFileError, match="log_density="):
            Posterior.load(folder)


def best_gaussian_bound() -> float:
    """For ``x ~ N(0, s^2), y | x ~ N(m, t^2)`` (by symmetry uncorrelated) the bound is known; the best of a grid."""
    s2, m, t2 = torch.meshgrid(
        torch.linspace(0.02, 1.5, 300), torch.linspace(0, 1, 100), torch.linspace(0.05, 1.5, 300), indexing="ij"
    )
    # E (y - x^2)^2 = t2 + m^2 - 2 m s2 + 3 s2^2, and the entropy of both.
    energy = -0.5 * s2 - 2 * (t2 + m**2 - 2 * m * s2 + 3 * s2**2)
    return float((energy + 0.5 * (s2 * t2).log() + 1 + math.log(2 * math.pi)).max())


@pytest.mark.parametrize(
    "objective", ["reverse_kl", "iw_elbo", "alpha", "forward_kl", {"forward_kl": {"by": "importance"}}], ids=str
)
def test_every_objective_goes_down(objective: Any) -> None:
    """On a banana, from a Gaussian: each brings more draws into effect."""
    straight = fit_posterior(banana, event_shape=2, family="gaussian", **QUICK | {"max_steps": 0})
    bent = fit_posterior(
        banana, event_shape=2, objective=objective, family={"flow": {"num_transforms": 2}}, **QUICK | {"max_steps": 50}
    )
    assert bent.ess > 1.2 * straight.ess
    assert abs(float(bent.log_z) - math.log(math.pi)) < 0.03 + 3 * bent.log_z.standard_error


class TestBadInput:
    def test_nan_in_places_is_counted_and_the_fit_goes_on(self) -> None:
        def holed(x: Tensor) -> Tensor:
            return torch.where(x[..., 0] > 1.5, math.nan, -0.5 * x.square().sum(-1))

        posterior = fit_posterior(holed, event_shape=2, **QUICK)
        assert "NaN or +inf" in posterior.verdict
        truth = math.log(2 * math.pi * 0.5 * (1 + math.erf(1.5 / math.sqrt(2))))
        assert abs(float(posterior.log_z) - truth) < 0.03 + 3 * posterior.log_z.standard_error

    @pytest.mark.parametrize(
        "improper",
        [lambda x: 0 * x.sum(-1), lambda x: -0.5 * x[..., 0] ** 2 + 0 * x[..., 1], lambda x: x.sum(-1)],
        ids=["flat", "in one", "rising"],
    )
    def test_an_improper_density_is_refused(self, improper: Any) -> None:
        with pytest.raises(DataError, match=r"improper.*grow without bound"):
            fit_posterior(improper, event_shape=2, **QUICK)

    def test_an_improper_parameter_is_named(self) -> None:
        with pytest.raises(DataError, match="along tau"):
            fit_posterior(lambda mu, tau: -0.5 * mu**2 + 0 * tau, parameters={"mu": real, "tau": positive}, **QUICK)

    @pytest.mark.parametrize(
        "improper", [lambda x: -torch.log(x), lambda x: -torch.log(x) - x], ids=["at both ends", "at 0"]
    )
    def test_a_pole_that_has_no_integral(self, improper: Any) -> None:
        """Flat as far as floats hold the logarithm."""
        with pytest.raises(DataError, match="improper: far out along x"):
            fit_posterior(improper, parameters={"x": positive}, **QUICK)

    def test_one_that_has_an_integral(self) -> None:
        posterior = fit_posterior(
            lambda x: -0.9 * torch.log(x) - x, parameters={"x": positive}, family="gaussian", **QUICK
        )
        assert abs(float(posterior.log_z) - math.lgamma(0.1)) < 0.02 + 3 * posterior.log_z.standard_error

    def test_a_heavy_tail_is_not_taken_for_improper(self) -> None:
        posterior = fit_posterior(lambda x: -torch.log1p(x.square()).sum(-1), event_shape=1, **QUICK)
        assert abs(float(posterior.log_z) - math.log(math.pi)) < 0.1

    def test_a_density_that_is_finite_nowhere(self) -> None:
        with pytest.raises(DataError, match="finite at none of"):
            fit_posterior(lambda x: x.sum(-1) * math.nan, event_shape=2, **QUICK)

    def test_a_start_that_does_not_fit(self) -> None:
        with pytest.raises(ConfigError, match=r"tau = -1\.0 does not fit positive"):
            fit_posterior(lambda tau: -tau, parameters={"tau": positive}, start={"tau": -1.0}, **QUICK)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"family": "nfs"}, "did you mean nsf"),
            ({"objective": "reverse"}, "objective"),
            ({"observed": np.ones(3)}, "observed must be a mapping"),
            ({"max_steps": -1}, "max_steps"),
            ({"seed": -1}, "seed"),
            ({"initial": "laplas"}, "did you mean laplace"),
            ({"family": "diffusion", "objective": "iw_elbo"}, "its own bound"),
            ({"family": {"diffusion": {"steps": 3}}}, "did you mean num_steps"),
            ({"family": "continuous", "initial": "laplace"}, "needs particles"),
            ({"objective": "forward_kl", "initial": "laplace"}, "needs particles"),
            ({"family": {"flow": {"num_bin": 3}}}, "did you mean num_bins"),
        ],
        ids=str,
    )
    def test_an_argument_out_of_range(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            fit_posterior(gaussian, event_shape=3, **QUICK | wrong)


def test_it_is_reached_as_the_readme_says() -> None:
    assert sf.inference.fit_posterior is fit_posterior
