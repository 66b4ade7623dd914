"""What every score of anomalies owes, and that each says what it means to: against densities that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import Gaussian, GaussianMixture

import sciflow as sf
from sciflow.anomaly.attribution import attribution
from sciflow.anomaly.recipe import default_score
from sciflow.anomaly.scores import (
    SCORES,
    ComplexityCorrected,
    DenoisingError,
    DiffusionTime,
    Ensemble,
    LatentNorm,
    LikelihoodRatio,
    LocalDimension,
    LocalOutlierFactor,
    MeanDistance,
    NegativeLogProb,
    ScoreNorms,
    SubspaceDistance,
    Typicality,
    build,
)
from sciflow.anomaly.scores.surprise import surprise
from sciflow.diffusion import schedule
from sciflow.errors import ConfigError, DataError, ShapeError

EDM = schedule("edm")


def known(truth: GaussianMixture) -> sf.diffusion.Diffusion:
    """A diffusion model whose denoiser is exact."""

    def denoise(x, t, context=None):
        return truth.denoise(x.double(), t.double(), EDM).to(x.dtype)

    return sf.diffusion.Diffusion.from_denoiser(denoise, (truth.means.shape[1],), EDM).double()


def score_dtype(score) -> torch.dtype:
    return score.densities[0].dtype if score.densities else torch.float32


def flow(num_features: int = 3) -> sf.flows.NSF:
    """A flow that is the identity, of a standard normal."""
    return sf.flows.NSF((num_features,), num_transforms=1, preprocess="none", seed=0).double()


def normal_rows(n: int = 500, num_features: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, num_features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STANDARD = Gaussian(torch.zeros(3), torch.eye(3))
EVERY = {
    "nll": lambda: NegativeLogProb(flow()),
    "nll by an ode": lambda: NegativeLogProb(known(STANDARD), method="ode"),
    "typicality": lambda: Typicality(flow()),
    "latent_norm": lambda: LatentNorm(flow()),
    "likelihood_ratio": lambda: LikelihoodRatio(flow(), wide(3)),
    "complexity_corrected": lambda: ComplexityCorrected(flow()),
    "local_dimension of a flow": lambda: LocalDimension(flow()),
    "local_dimension of a diffusion": lambda: LocalDimension(known(STANDARD)),
    "denoising_error": lambda: DenoisingError(known(STANDARD)),
    "score_norms": lambda: ScoreNorms(known(STANDARD)),
    "diffusion_time": DiffusionTime,
    "diffusion_time of one neighbour": lambda: DiffusionTime(1),
    "mean_distance": MeanDistance,
    "local_outlier_factor": LocalOutlierFactor,
    "subspace_distance": lambda: SubspaceDistance(2),
    "ensemble": lambda: Ensemble([NegativeLogProb(flow()), DenoisingError(known(STANDARD)), LocalOutlierFactor()]),
}


def wide(num_features: int) -> sf.flows.NSF:
    """A normal of standard deviation 3."""
    made = sf.flows.NSF((num_features,), num_transforms=1, seed=0).double()
    made.fit_preprocessing(3 * normal_rows(20_000, num_features, seed=1))
    return made.eval()


@pytest.fixture(params=EVERY, scope="module")
def score(request):
    return EVERY[request.param]().fit(normal_rows(), reference=normal_rows(seed=2))


class TestEveryScore:
    def test_is_one_number_a_row(self, score):
        assert score(normal_rows(6)).shape == (6,)
        assert score(normal_rows(6).reshape(2, 3, 3)).shape == (2, 3)
        assert score(normal_rows(0)).shape == (0,)
        assert score(normal_rows(6)).dtype == torch.float64

    def test_depends_on_the_row_alone(self, score):
        rows = torch.cat([normal_rows(5), 8 * normal_rows(5, seed=3)])
        together, alone = score(rows), torch.cat([score(row[None]) for row in rows])
        # Scores that stand on rows compare them in single precision.
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(score(rows.flip(0)).flip(0), together, rtol=1e-5, atol=1e-5)

    def test_is_higher_far_from_what_is_normal(self, score):
        usual, odd = score(normal_rows(200, seed=4)), score(normal_rows(200, seed=5) * 2 + 6)
        assert (odd[:, None] > usual).double().mean() > 0.97

    def test_has_no_value_for_rows_without_one(self, score):
        rows = normal_rows(3)
        rows[0, 1], rows[2, 0] = math.nan, math.inf
        assert score(rows).isnan().tolist() == [True, False, True]

    @pytest.mark.parametrize("far", [1e10, 1e30, 3e38])
    def test_has_a_value_however_far_out(self, score, far):
        usual, out = score(normal_rows(50, seed=6)), score([[far] * 3, [0.0, -far, 0.0]])
        assert (out > usual.median()).all()
        typical = normal_rows(5, seed=7)
        why = attribution(score, *score._rows([[far] * 3], None), typical.to(score_dtype(score)), 0.0)
        assert np.isfinite(why.numpy().astype(np.float32)).all()

    def test_is_the_same_again(self, score):
        assert torch.equal(score(normal_rows(9)), score(normal_rows(9)))

    def test_takes_what_others_have(self, score):
        rows = normal_rows(4)
        torch.testing.assert_close(score(rows.numpy()), score(rows), rtol=1e-8, atol=1e-8)

    def test_refuses_rows_of_another_shape(self, score):
        with pytest.raises(ShapeError):
            score(normal_rows(4, num_features=2))

    def test_refuses_text(self, score):
        with pytest.raises(DataError):
            score([["a", "b", "c"]])

    def test_leaves_no_graph_and_no_mode_behind(self, score):
        for density in score.all_densities():
            density.train()
        assert not score(normal_rows(2).requires_grad_()).requires_grad
        assert all(density.training for density in score.all_densities())


@pytest.mark.parametrize(
    "name", ["typicality", "complexity_corrected", "local_dimension", "diffusion_time", "ensemble"]
)
def test_a_score_that_has_to_look_at_normal_rows_says_so(name):
    with pytest.raises(ConfigError, match="fit"):
        EVERY[next(key for key in EVERY if key.startswith(name))]()(normal_rows(3))


class TestNegativeLogProb:
    def test_is_minus_log_p_in_the_units_of_the_data(self):
        rows = normal_rows(9)
        expected = -STANDARD.log_prob(rows)
        torch.testing.assert_close(NegativeLogProb(flow())(rows), expected)
        by_ode = NegativeLogProb(known(STANDARD), method="ode", tolerance=1e-6)
        torch.testing.assert_close(by_ode(rows), expected, rtol=0, atol=1e-4)

    def test_of_a_condition_is_that_of_the_condition(self):
        model = sf.flows.NSF((2,), context_shape=(1,), num_transforms=1, seed=0)
        score = NegativeLogProb(model)
        rows, contexts = torch.zeros(4, 2), torch.linspace(-1, 1, 4)[:, None]
        torch.testing.assert_close(score(rows, contexts), -model.log_prob(rows, contexts).double())
        assert score(rows, contexts[0]).shape == (4,)


class TestTypicality:
    def test_the_most_likely_event_of_many_numbers_is_odd(self):
        rows = normal_rows(2000, 50)
        score = Typicality(flow(50)).fit(rows)
        usual = score(normal_rows(100, 50, seed=1))
        assert score(torch.zeros(1, 50)).item() > usual.max()
        assert NegativeLogProb(flow(50))(torch.zeros(1, 50)).item() < NegativeLogProb(flow(50))(rows).min()


class TestLikelihoodRatio:
    def test_is_the_logarithm_of_the_ratio(self):
        rows, width = normal_rows(9), torch.full((3,), 3.0, dtype=torch.float64)
        wider = torch.distributions.Normal(0, width).log_prob(rows).sum(1)
        expected = wider - STANDARD.log_prob(rows)
        torch.testing.assert_close(LikelihoodRatio(flow(), wide(3))(rows), expected, rtol=0, atol=0.1)

    def test_refuses_a_background_of_other_events(self):
        with pytest.raises(ShapeError, match="background"):
            LikelihoodRatio(flow(3), flow(2))


class TestDenoisingError:
    def test_of_a_normal_density_is_what_it_must_be(self):
        # The mean error of x + k e is |k^2 x|^2 + d k^2 over (1 + k^2)^2, with noise averaged out.
        score = DenoisingError(known(STANDARD), num_levels=1, num_draws=400).fit(normal_rows(2000))
        rows = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], dtype=torch.float64)
        level = 0.1
        expected = (level**4 * rows.square().sum(1) + 3 * level**2) / (1 + level**2) ** 2 / 3
        torch.testing.assert_close(score._errors(rows, None)[:, 0], expected, rtol=0.15, atol=0)

    def test_knows_which_element_is_odd(self):
        mixture = Gaussian(torch.zeros(3), torch.diag(torch.tensor([1.0, 0.01, 1.0])))
        score = DenoisingError(known(mixture)).fit(mixture.sample(500, torch.Generator().manual_seed(0)))
        rows = torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64)
        found = score.attribution(rows, None)
        assert found.argmax().item() == 1
        by_likelihood = NegativeLogProb(known(mixture)).attribution(rows, None)
        assert by_likelihood.argmax().item() == 1

    def test_stands_on_a_diffusion(self):
        with pytest.raises(ConfigError, match="Diffusion"):
            DenoisingError(flow())


class TestScoreNorms:
    def test_are_those_of_a_normal_density(self):
        score = ScoreNorms(known(STANDARD), num_levels=3)
        rows = normal_rows(5)
        levels = torch.tensor([0.02, 0.2, 2.0], dtype=torch.float64)
        expected = (levels * rows.norm(dim=1, keepdim=True) / (1 + levels**2)).log()
        torch.testing.assert_close(score._log_norms(rows, None), expected, rtol=0, atol=1e-6)


class TestLocalDimension:
    def test_of_a_thin_plane_is_two(self):
        thin = Gaussian(torch.zeros(3), torch.diag(torch.tensor([1.0, 1.0, 1e-8])))
        rows = thin.sample(20, torch.Generator().manual_seed(0))
        found = LocalDimension(known(thin)).dimension(rows)
        # The term of the score adds what is left of it: |k^2 x / (1 + k^2)|^2 / k^2, next to nothing.
        torch.testing.assert_close(found, torch.full_like(found, 2.0), rtol=0, atol=0.05)

    def test_of_a_flow_and_of_a_diffusion_of_the_same_density_agree(self):
        rows, noise = normal_rows(9), 0.3
        by_map = LocalDimension(flow(), noise).dimension(rows)
        by_denoiser = LocalDimension(known(STANDARD), noise).dimension(rows)
        torch.testing.assert_close(by_map, torch.full_like(by_map, 3 / (1 + noise**2)))
        # That of a diffusion has a term of the score.
        of_score = noise**2 * rows.square().sum(1) / (1 + noise**2) ** 2
        torch.testing.assert_close(by_denoiser, by_map + of_score, rtol=0, atol=1e-6)

    def test_finds_a_likely_row_of_few_dimensions_odd(self):
        # A plane, and a line along it on which the density is higher.
        plane = torch.diag(torch.tensor([1.0, 1.0, 1e-6]))
        line = torch.diag(torch.tensor([1e-6, 0.3, 1e-6]))
        both = GaussianMixture(torch.tensor([1.0, 1e-3]), torch.zeros(2, 3), torch.stack([plane, line]))
        model = known(both)
        generator = torch.Generator().manual_seed(0)
        usual = Gaussian(torch.zeros(3), plane).sample(400, generator)
        usual = usual[usual[:, 0].abs() > 0.05]
        odd = Gaussian(torch.zeros(3), line).sample(50, generator)
        score = LocalDimension(model).fit(usual)
        by_likelihood = NegativeLogProb(model, method="ode", tolerance=1e-2)
        ranks = [(s(odd)[:, None] > s(usual)).double().mean().item() for s in (score, by_likelihood)]
        assert ranks[0] > 0.95
        assert ranks[1] < 0.5


class TestComplexityCorrected:
    def test_takes_off_what_a_compressor_explains(self):
        generator = np.random.default_rng(0)
        usual = torch.from_numpy(generator.normal(size=(200, 256)))
        score = ComplexityCorrected(flow(256)).fit(usual)
        flat = torch.zeros(1, 256, dtype=torch.float64)
        assert NegativeLogProb(flow(256))(flat).item() < NegativeLogProb(flow(256))(usual).min()
        assert score(flat).item() > score(usual).max()


class TestScoresThatStandOnRows:
    def test_diffusion_time_is_the_distance_of_the_nearest_rows(self):
        rows, new = normal_rows(), normal_rows(20, seed=1)
        score = DiffusionTime(num_neighbours=3).fit(rows)
        mean, std = rows.mean(0), rows.std(0, correction=0)
        distances = torch.cdist((new - mean) / std, (rows - mean) / std).sort(1).values[:, :3]
        torch.testing.assert_close(score(new), distances.square().mean(1).sqrt(), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "score",
        [DiffusionTime(), DiffusionTime(1), MeanDistance(), LocalOutlierFactor(), SubspaceDistance(2)],
        ids=repr,
    )
    def test_what_is_normal_is_found_by_leaving_each_row_out(self, score):
        rows = normal_rows(400)
        score.fit(rows[:300], reference=rows[300:])
        known = score.normal_values(rows[300:], None)
        assert len(known) == 400
        # As new rows have them, not as rows that are compared with themselves.
        new = score(normal_rows(4000, seed=1))
        assert (known > new.median()).double().mean().item() == pytest.approx(0.5, abs=0.1)

    def test_an_outlier_factor_is_relative_to_how_dense_it_is(self):
        generator = torch.Generator().manual_seed(0)
        dense, sparse = (
            torch.randn(300, 2, generator=generator) * width + centre for width, centre in ((0.02, -1.0), (0.5, 1.0))
        )
        near_dense = torch.tensor([[-1.0, -0.9]])
        inside_sparse = sparse[:100] + 0.1 * torch.randn(100, 2, generator=generator)
        rows = torch.cat([dense, sparse])
        relative, absolute = LocalOutlierFactor().fit(rows), DiffusionTime().fit(rows)
        ranks = [(s(near_dense) > s(inside_sparse)).double().mean().item() for s in (relative, absolute)]
        assert ranks[0] > 0.8
        assert ranks[1] < 0.6

    def test_what_is_odd_in_one_of_many_numbers_shows_in_subsets(self):
        rows, new = normal_rows(1000, 20), normal_rows(200, 20, seed=1)
        odd = new.clone()
        odd[:, 7] = 3.5
        pairs, all_at_once = SubspaceDistance(2, num_subspaces=60).fit(rows), DiffusionTime().fit(rows)
        ranks = [(s(odd)[:, None] > s(new)).double().mean().item() for s in (pairs, all_at_once)]
        assert ranks[0] > 0.95
        assert ranks[0] > ranks[1] + 0.05

    def test_every_number_is_in_as_many_subsets(self):
        subsets = SubspaceDistance(3, num_subspaces=20).fit(normal_rows(50, 9)).found["subsets"]
        assert subsets.unique(return_counts=True)[1].unique().tolist() == [len(subsets) * 3 // 9]
        assert all(len(set(subset)) == 3 for subset in subsets.tolist())
        every = SubspaceDistance(2, num_subspaces=20).fit(normal_rows(50, 4)).found["subsets"]
        assert every.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]

    def test_a_distance_from_the_mean_is_that(self):
        rows, new = normal_rows(20, 4), normal_rows(5, 4, seed=1)
        off = (new - rows.mean(0)) / rows.std(0, correction=0)
        torch.testing.assert_close(MeanDistance().fit(rows)(new), off.norm(dim=1), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("score", [DiffusionTime(), DiffusionTime(1), MeanDistance()], ids=repr)
    def test_a_distance_is_the_sum_of_what_its_elements_add(self, score):
        rows, new = normal_rows(20, 4).float(), normal_rows(5, 4, seed=1).float()
        rows[:, 2] = 1.0
        shares = score.fit(rows).attribution(new, None)
        torch.testing.assert_close(shares.sum(1), score(new), rtol=1e-5, atol=1e-5)
        assert (shares[:, 2] > 0).all()

    @pytest.mark.parametrize("shape", [(9,), (3, 3)])
    def test_few_rows_tell_apart_what_lies_beyond_them(self, shape):
        score = default_score(17, shape, 0, pytest.fail).fit(normal_rows(17, 9).reshape(17, *shape))
        further = score(torch.stack([torch.full(shape, value) for value in (9.0, 10.0, 20.0)]))
        assert (further.diff() > 0).all()

    @pytest.mark.parametrize("kind", [DiffusionTime, LocalOutlierFactor, lambda: SubspaceDistance(2)])
    def test_a_row_further_out_than_can_be_counted_is_infinitely_odd(self, kind):
        score = kind().fit(1e-8 * normal_rows(100))
        assert score([[3e38] * 3]).tolist() == [math.inf]

    def test_knows_no_context(self):
        with pytest.raises(ShapeError, match="context"):
            DiffusionTime().fit(normal_rows(), normal_rows())

    def test_is_fitted_again_on_other_rows(self):
        score = DiffusionTime().fit(normal_rows())
        other = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(score.fit(other)(other), DiffusionTime().fit(other)(other))


class TestNumbersThatNeverVary:
    """Beside three that do: one that is 7 in all rows, and one that is 0."""

    ON_ROWS = (DiffusionTime, MeanDistance, LocalOutlierFactor, lambda: SubspaceDistance(2))

    @staticmethod
    def rows(n: int = 500, seed: int = 0) -> torch.Tensor:
        return torch.cat([normal_rows(n, seed=seed), torch.tensor([[7.0, 0.0]]).double().expand(n, 2)], 1)

    @pytest.mark.parametrize("kind", ON_ROWS)
    def test_say_nothing_as_long_as_they_do_not(self, kind):
        new = self.rows(50, seed=1)
        with_them, without = kind().fit(self.rows()), kind().fit(normal_rows())
        torch.testing.assert_close(with_them(new), without(new[:, :3]), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", ON_ROWS)
    def test_a_row_in_which_one_does_is_odder_than_all_that_are_normal(self, kind):
        score = kind().fit(self.rows())
        for column in (3, 4):
            new = self.rows(50, seed=1)
            new[:, column] += 1e-3
            assert score(new).min() > score.found["normal"].max()

    def test_it_is_as_far_off_as_the_one_row_of_all_that_departed_would_be(self):
        never, once = self.rows(), self.rows()
        once[17, 3] += 0.2
        new = never[40:41].clone()
        new[0, 3] += 0.1
        assert DiffusionTime(1).fit(never)(new).item() == pytest.approx(math.sqrt(500))
        departed = new.clone()
        departed[0, 3] = once[17, 3]
        of_other_rows = DiffusionTime(1).fit(once)
        assert of_other_rows._compared(departed)[0, 3].item() == pytest.approx(math.sqrt(500), rel=2e-3)
        new[0, 4] = -3.0
        assert DiffusionTime(1).fit(never)(new).item() == pytest.approx(math.sqrt(1000))

    def test_it_is_counted_whatever_field_it_is_in(self):
        score = DiffusionTime(1).fit(self.rows().reshape(500, 1, 5))
        new = self.rows()[:1].reshape(1, 1, 5)
        new[0, 0, 3] = 8.0
        assert score(new).item() == pytest.approx(math.sqrt(500))

    def test_rounding_is_no_change_and_beside_zero_everything_is(self):
        score = DiffusionTime(1).fit(self.rows())
        new = self.rows()[:4]
        new[:, 3] = torch.tensor([7 * (1 + 1e-7), 7 * (1 - 1e-7), 7 * (1 + 1e-6), 7.0])
        new[3, 4] = 1e-30
        assert (score(new) > 1).tolist() == [False, False, True, True]

    def test_are_in_every_subset(self):
        subsets = SubspaceDistance(2, num_subspaces=20).fit(self.rows()).found["subsets"]
        assert subsets.tolist() == [[0, 1, 3], [0, 2, 3], [1, 2, 3]]

    def test_where_there_are_none_rows_are_compared_as_they_are(self):
        rows = normal_rows().float()
        score = DiffusionTime().fit(rows)
        expected = ((rows.double() - rows.double().mean(0)) / rows.double().std(0, correction=0)).float()
        assert torch.equal(score._compared(rows), expected)

    def test_numbers_of_which_none_varies_tell_nothing(self):
        with pytest.raises(DataError, match="the same"):
            DiffusionTime().fit(torch.ones(20, 2))


class TestSurprise:
    def test_of_normal_values_it_is_that_of_their_ranks(self):
        normal = torch.arange(1000.0)
        assert surprise(torch.tensor([500.0]), normal).item() == pytest.approx(math.log(2), abs=0.01)

    @pytest.mark.parametrize("tail", [lambda u: -u.log(), lambda u: u**-0.5], ids=["exponential", "Pareto"])
    def test_far_out_it_is_that_of_the_tail(self, tail):
        generator = torch.Generator().manual_seed(0)
        normal = tail(torch.rand(20_000, generator=generator, dtype=torch.float64)).sort().values
        shares = torch.tensor([1e-2, 1e-4, 1e-6], dtype=torch.float64)
        torch.testing.assert_close(surprise(tail(shares), normal), -shares.log(), rtol=0.15, atol=0)

    def test_rises_and_is_finite(self):
        generator = torch.Generator().manual_seed(0)
        for normal in (torch.randn(200, generator=generator), torch.zeros(50), torch.tensor([1.0]), torch.arange(9.0)):
            values = torch.linspace(-10, 1e6, 2000, dtype=torch.float64)
            found = surprise(values, normal.sort().values)
            assert found.isfinite().all()
            assert (found.diff() >= -1e-12).all()

    def test_the_last_digit_decides_nothing(self):
        normal = torch.tensor([0.5] * 30 + [1.0] * 50 + [3.0] * 15 + [7.0, 8.0, 9.0, 10.0, 11.0]).double()
        values = normal.unique()
        for rounded in (values * (1 - 1e-7), values * (1 + 1e-7)):
            torch.testing.assert_close(surprise(rounded, normal), surprise(values, normal), rtol=1e-6, atol=0)


class TestEnsemble:
    def test_a_row_that_was_seen_is_not_surprising(self):
        rows = normal_rows()
        score = Ensemble([DiffusionTime(), LocalOutlierFactor()]).fit(rows)
        assert (score(rows[:5]) == 0).all()
        assert (score(rows[:5] + 1e-3) > 0).all()

    def test_does_not_mind_units(self):
        class Scaled(NegativeLogProb):
            def _scores(self, x, context):
                return 1e6 * super()._scores(x, context) - 1e7

        rows, held, new = normal_rows(), normal_rows(seed=1), normal_rows(50, seed=2)
        plain = Ensemble([NegativeLogProb(flow()), LatentNorm(flow())]).fit(rows, reference=held)
        scaled = Ensemble([Scaled(flow()), LatentNorm(flow())]).fit(rows, reference=held)
        torch.testing.assert_close(plain(new), scaled(new), rtol=1e-6, atol=1e-6)

    def test_hears_a_member_that_is_alarmed(self):
        class First(NegativeLogProb):
            def _scores(self, x, context):
                return x[:, 0].abs()

        class Second(NegativeLogProb):
            def _scores(self, x, context):
                return x[:, 1].abs()

        for combine in ("mean", "max"):
            score = Ensemble([First(flow()), Second(flow())], combine).fit(normal_rows(), reference=normal_rows(seed=1))
            odd = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], dtype=torch.float64)
            assert (score(odd)[:, None] > score(normal_rows(200, seed=2))).double().mean() > 0.95

    @pytest.mark.parametrize("members", [[], "nll", [1]])
    def test_is_made_of_scores(self, members):
        with pytest.raises(ConfigError):
            Ensemble(members)


class TestByName:
    def test_every_name_is_that_of_its_score(self):
        assert all(SCORES[name].name == name for name in SCORES)

    def test_options_go_with_the_name(self):
        made = build({"denoising_error": {"num_draws": 8}}, lambda family: known(STANDARD))
        assert made.arguments["num_draws"] == 8

    def test_a_list_is_put_together(self):
        made = build(["nll", {"local_outlier_factor": {"num_neighbours": 3}}, flow()], lambda family: flow())
        assert [member.name for member in made.members] == ["nll", "local_outlier_factor", "nll"]
        with pytest.raises(ConfigError, match="one score or more"):
            build([], lambda family: flow())

    def test_an_ensemble_is_made_of_names_too(self):
        made = build({"ensemble": {"scores": ["nll", "latent_norm"], "combine": "max"}}, lambda family: flow())
        assert repr(made) == "Ensemble([NegativeLogProb(NSF, method=None), LatentNorm(NSF)], combine='max')"

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ("nnl", "did you mean nll"),
            (["nll", "nnl"], "did you mean nll"),
            ("ensemble", "give its members"),
            ({"ensemble": {"scores": ["nnl"]}}, "did you mean nll"),
            ({"nll": 3}, "mapping"),
            ({"denoising_error": {"draws": 3}}, "draws"),
            (3, "give a name"),
            ("likelihood_ratio", "background"),
        ],
    )
    def test_what_is_not_there_is_told(self, wanted, message):
        def trained(family: str) -> sf.flows.NSF:
            raise AssertionError("told too late: something was trained")

        with pytest.raises(ConfigError, match=message):
            build(wanted, trained)
