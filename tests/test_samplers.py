"""Samplers: one suite over all of them and all schedules, on denoisers that are known; a new one joins by its name."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import analytic
import pytest
import scipy.stats
import torch
from torch import Tensor

from sciflow.diffusion.samplers import SAMPLERS, SPACINGS, Past, Point, Process, Sampler, sampler, times, trajectory
from sciflow.diffusion.samplers.exponential import weights
from sciflow.diffusion.schedules import Schedule, schedule
from sciflow.errors import ConfigError

SCHEDULES = {name: schedule(name) for name in ("vp", "cosine", "sub-vp", "ve", "edm", "flow")}
VARIANTS = {
    "ddim half": {"ddim": {"eta": 0.5}},
    "dpm++ published": {"dpm++": {"variable": "log"}},
    "dpm++3 published": {"dpm++3": {"variable": "log"}},
    "unipc published": {"unipc": {"variable": "log"}},
    "unipc3 published": {"unipc3": {"variable": "log"}},
    "dpm++ sde": {"dpm++": {"eta": 1.0}},
    "dpm++ sde published": {"dpm++": {"eta": 1.0, "variable": "log"}},
    "edm churned": {"edm": {"churn": 20.0, "churn_max": 25.0}},
}
ALL = {**{name: sampler(name) for name in SAMPLERS}, **{name: sampler(given) for name, given in VARIANTS.items()}}
STOCHASTIC = [
    name for name, it in ALL.items()
    if name in ("ddpm", "euler-maruyama", "predictor-corrector") or getattr(it, "eta", 0) or getattr(it, "churn", 0)
]  # fmt: skip
DETERMINISTIC = [name for name in ALL if name not in STOCHASTIC]
OWN_TIME = ("euler", "heun", "euler-maruyama")
SEMI_LINEAR = [name for name in ALL if name not in OWN_TIME]
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "edm": 2, "dpm++": 2, "dpm++3": 3, "unipc": 3, "unipc3": 4}

GAUSSIAN = analytic.Gaussian([0.5, -1.0, 0.2], [[1.0, 0.3, 0.0], [0.3, 0.2, 0.1], [0.0, 0.1, 0.5]])
TWO_PEAKS = analytic.GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.2], [0.6]]), torch.tensor([[[0.04]], [[0.25]]])
)
RING = analytic.GaussianMixture.ring().normalised()

every_schedule = pytest.mark.parametrize("of", SCHEDULES.values(), ids=SCHEDULES)


def every(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names)


def process_of(mixture, of: Schedule, seed: int = 0) -> Process:
    return Process(lambda x, t: mixture.denoise(x, t, of), of, torch.Generator().manual_seed(seed))


def noise(process: Process, t: float, n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    alpha, sigma = process.levels(float(t))
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return math.hypot(alpha, sigma) * z


def drawn(name: str, mixture, of: Schedule, num_steps: int, n: int, spacing: str = "sigmoid", **options) -> Tensor:
    process, along = process_of(mixture, of), times(of, num_steps, spacing)
    x = noise(process, along[0], n, mixture.means.shape[1], **options)
    return trajectory(process, ALL[name], x, along)


def error_of_flow(name: str, of: Schedule, num_steps: int) -> float:
    """Largest distance from where the probability flow of a Gaussian goes."""
    process, along = process_of(GAUSSIAN, of), times(of, num_steps, "log", 1e-2)
    x = noise(process, along[0], 64, 3)
    there = GAUSSIAN.transport(x, float(along[0]), float(along[-1]), of)
    exact = GAUSSIAN.denoise(there, along[-1], of)
    return float((trajectory(process, ALL[name], x, along) - exact).abs().max())


def wasserstein(x: Tensor, mixture) -> float:
    """Sliced Wasserstein distance to a mixture in the plane, over 12 directions."""
    share = (torch.arange(len(x)).double() + 0.5) / len(x)
    squares = []
    for angle in torch.arange(12) * (math.pi / 12):
        direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
        at = torch.searchsorted(mixture.projected(direction).cdf(grid), share).clamp(0, 4000)
        squares.append(((x.double() @ direction).sort().values - grid[at]).square().mean())
    return float(torch.stack(squares).mean().sqrt())


class TestConverge:
    @every_schedule
    @every(list(ORDERS))
    def test_with_their_order_to_the_flow_of_a_gaussian(self, name: str, of: Schedule) -> None:
        coarse, fine = (error_of_flow(name, of, num_steps) for num_steps in (120, 240))
        assert fine < 0.4
        assert math.log2(coarse / fine) > ORDERS[name] - 0.15

    @every(["dpm++ published", "dpm++3 published", "unipc published", "unipc3 published"])
    def test_so_do_the_published_forms(self, name: str) -> None:
        coarse, fine = (error_of_flow(name, SCHEDULES["vp"], num_steps) for num_steps in (120, 240))
        assert math.log2(coarse / fine) > ORDERS[name.split()[0]] - 0.25

    @every_schedule
    @every(STOCHASTIC)
    def test_in_distribution(self, name: str, of: Schedule) -> None:
        x = drawn(name, TWO_PEAKS, of, 150, 2000, "log" if name == "euler-maruyama" else "sigmoid")
        test = scipy.stats.kstest(x[:, 0].numpy(), lambda at: TWO_PEAKS.cdf(torch.as_tensor(at)).numpy())
        assert test.pvalue > 1e-3

    @every_schedule
    def test_euler_and_maruyama_by_finer_steps_in_the_schedules_own_time(self, of: Schedule) -> None:
        def off(num_steps: int) -> float:
            x = drawn("euler-maruyama", TWO_PEAKS, of, num_steps, 4000, "log")
            return scipy.stats.kstest(x[:, 0].numpy(), lambda at: TWO_PEAKS.cdf(torch.as_tensor(at)).numpy()).statistic

        assert off(200) < off(6) / 2

    @every(list(ALL))
    def test_on_a_mixture_in_the_plane(self, name: str) -> None:
        x = drawn(name, RING, SCHEDULES["vp"], 60, 2000, dtype=torch.float32)
        chance = max(wasserstein(RING.sample(2000, torch.Generator().manual_seed(seed)), RING) for seed in range(5))
        first_order = ALL[name].evaluations == 1 and ORDERS.get(name, 1) == 1
        assert wasserstein(x, RING) < (3 if first_order else 1.5) * chance

    @every_schedule
    def test_ten_evaluations_of_a_multistep_sampler_are_worth_a_hundred_ancestral_ones(self, of: Schedule) -> None:
        many = wasserstein(drawn("ddpm", RING, of, 100, 4000), RING)
        for name in ("dpm++3", "unipc", "unipc3"):
            assert wasserstein(drawn(name, RING, of, 10, 4000), RING) < 1.1 * many


class TestEverySampler:
    @every(list(ALL))
    def test_evaluates_as_often_as_it_says(self, name: str) -> None:
        process, along = process_of(RING, SCHEDULES["edm"]), times(SCHEDULES["edm"], 18, "power")
        trajectory(process, ALL[name], noise(process, along[0], 3, 2), along)
        assert process.nfe == ALL[name].evaluations * 17 + 1

    @every_schedule
    @every(list(ALL))
    def test_takes_one_two_or_three_steps(self, name: str, of: Schedule) -> None:
        for num_steps in (1, 2, 3):
            for spacing in SPACINGS:
                x = drawn(name, RING, of, num_steps, 50, spacing, dtype=torch.float32)
                assert x.dtype == torch.float32
                assert torch.isfinite(x).all()
        one = drawn(name, RING, of, 1, 50)
        assert one.abs().max() < 0.2  # the mean of all events, or nearly

    @every_schedule
    @every(list(ALL))
    def test_begins_where_there_is_no_signal_at_all(self, name: str, of: Schedule) -> None:
        process = process_of(RING, of)
        x = trajectory(process, ALL[name], noise(process, 1.0, 50, 2, torch.float32), torch.tensor([1.0, 0.6, 0.2]))
        assert torch.isfinite(x).all()

    @every(list(ALL))
    def test_draws_no_events_where_none_are_asked_for(self, name: str) -> None:
        assert drawn(name, RING, SCHEDULES["vp"], 5, 0).shape == (0, 2)

    @every(list(ALL))
    def test_keeps_nothing_of_another_trajectory(self, name: str) -> None:
        first, _, again = (drawn(name, RING, SCHEDULES["cosine"], steps, 5) for steps in (9, 4, 9))
        assert torch.equal(first, again)

    @every(list(ALL))
    def test_events_of_any_shape(self, name: str) -> None:
        def denoise(x: Tensor, t: Tensor) -> Tensor:  # of standard normal events
            alpha, sigma = SCHEDULES["flow"](t)
            return (alpha / (alpha**2 + sigma**2)).reshape(-1, 1, 1, 1) * x

        process = Process(denoise, SCHEDULES["flow"], torch.Generator().manual_seed(0))
        x = trajectory(process, ALL[name], torch.randn(4, 1, 3, 2) * 1000, times(SCHEDULES["flow"], 12))
        assert x.shape == (4, 1, 3, 2)

    @every(list(ALL))
    def test_keeps_the_precision_of_its_states(self, name: str) -> None:
        """Networks may answer in half precision."""
        process = process_of(RING, SCHEDULES["vp"])
        exact = process.denoise
        process.denoise = lambda x, t: exact(x, t).bfloat16()
        along = times(SCHEDULES["vp"], 6)
        assert (
            trajectory(process, ALL[name], noise(process, along[0], 4, 2, torch.float32), along).dtype == torch.float32
        )

    @pytest.mark.gpu
    @every(list(ALL))
    def test_never_waits_for_the_device(self, name: str) -> None:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return x / (1 + t[:, None].to(x.dtype))

        process = Process(denoise, SCHEDULES["vp"], torch.Generator("cuda").manual_seed(0))
        x, along = torch.randn(8, 2, device="cuda"), times(SCHEDULES["vp"], 5)
        torch.cuda.set_sync_debug_mode("error")
        try:
            x = trajectory(process, ALL[name], x, along)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(x).all()

    @every(list(ALL))
    def test_a_generator_decides(self, name: str) -> None:
        torch.manual_seed(0)
        one = drawn(name, RING, SCHEDULES["ve"], 6, 5)
        assert torch.equal(one, drawn(name, RING, SCHEDULES["ve"], 6, 5))
        process, along = process_of(RING, SCHEDULES["ve"], seed=2), times(SCHEDULES["ve"], 6)
        other = trajectory(process, ALL[name], noise(process, along[0], 5, 2), along)
        assert torch.equal(one, other) == (name in DETERMINISTIC)

    @every(DETERMINISTIC)
    def test_a_row_does_not_depend_on_the_others(self, name: str) -> None:
        process, along = process_of(RING, SCHEDULES["vp"]), times(SCHEDULES["vp"], 8)
        x = noise(process, along[0], 6, 2)
        both, alone = (trajectory(process, ALL[name], rows, along) for rows in (x, x[:1]))
        torch.testing.assert_close(both[:1], alone, rtol=1e-9, atol=1e-9)

    @every(SEMI_LINEAR)
    def test_is_the_same_on_every_schedule(self, name: str) -> None:
        """At the same noise levels, whose scale is all that schedules differ in."""
        levels = torch.tensor(40.0) * (torch.tensor(0.01) / 40) ** torch.linspace(0, 1, 12)
        start = torch.randn(20, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        states = {}
        for key, of in SCHEDULES.items():
            process, along = process_of(RING, of), of.time(levels.double())
            alpha = of(along)[0][:, None, None]
            path = trajectory(process, ALL[name], 40 * alpha[0] * start, along, return_trajectory=True)
            states[key] = torch.cat([path[:-1] / alpha, path[-1:]])
        for one, other in combinations(states, 2):
            torch.testing.assert_close(states[one], states[other], rtol=1e-6, atol=1e-6)


class TestPublishedForms:
    """Against formulas as the papers have them."""

    def test_ancestral_steps_follow_the_posterior(self) -> None:
        process, t, s = process_of(RING, SCHEDULES["vp"]), 0.5, 0.3
        x = noise(process, t, 5, 2)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.levels(t), process.levels(s)
        alpha = alpha_t / alpha_s
        beta = sigma_t**2 - alpha**2 * sigma_s**2
        mean = (alpha * sigma_s**2 * x + alpha_s * beta * process.mean(x, t)) / sigma_t**2
        z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = mean + sigma_s * math.sqrt(beta) / sigma_t * z
        torch.testing.assert_close(ALL["ddpm"].step(process, x, t, s, Past(9, 9)), expected)

    def test_dpm_solver_2m(self) -> None:
        process, (r, t, s) = process_of(RING, SCHEDULES["cosine"]), (0.7, 0.5, 0.35)
        x, before = noise(process, t, 5, 2), torch.randn(5, 2).double()
        lambdas = [math.log(alpha / sigma) for alpha, sigma in map(process.levels, (r, t, s))]
        h, ratio = lambdas[2] - lambdas[1], (lambdas[1] - lambdas[0]) / (lambdas[2] - lambdas[1])
        mean = (1 + 1 / (2 * ratio)) * process.mean(x, t) - 1 / (2 * ratio) * before
        (_, sigma_t), (alpha_s, sigma_s) = process.levels(t), process.levels(s)
        expected = sigma_s / sigma_t * x - alpha_s * math.expm1(-h) * mean
        past = Past(20, 10, [Point(r, x, before)])
        torch.testing.assert_close(ALL["dpm++ published"].step(process, x, t, s, past), expected)

    @pytest.mark.parametrize("order", [2, 3])
    def test_unipc_with_b2(self, order: int) -> None:
        process, of = process_of(RING, SCHEDULES["vp"]), SCHEDULES["vp"]
        along = times(of, 16, "log").tolist()
        x = noise(process, along[0], 5, 2)
        published = sampler({"unipc": {"order": order, "variable": "log"}})
        path = trajectory(process, published, x, torch.tensor(along), return_trajectory=True)
        expected = unipc_of_the_paper(process, x, along, order)
        torch.testing.assert_close(path[: len(along)], torch.stack(expected), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("churn", [0.0, 30.0])
    def test_edm(self, churn: float) -> None:
        """Algorithm 2, in its own time; noise is not raised above the schedule's."""
        of = SCHEDULES["edm"]
        process, along = process_of(RING, of), times(of, 18, "power")
        own = sampler({"edm": {"churn": churn, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}})
        x = noise(process, along[0], 5, 2)
        found = trajectory(process, own, x, along)
        generator = torch.Generator().manual_seed(0)
        for t, s in pairwise([*(80 * along).tolist(), 0.0]):
            if churn and 0.05 <= t <= 50 and s > 0:
                t_hat = t * (1 + min(churn / 18, math.sqrt(2) - 1))
                z = torch.randn(5, 2, generator=generator, dtype=torch.float64)
                x = x + math.sqrt(t_hat**2 - t**2) * 1.003 * z
                t = t_hat
            slope = (x - process.mean(x, t / 80)) / t
            ahead = x + (s - t) * slope
            x = ahead if s == 0 else x + (s - t) * (slope + (ahead - process.mean(ahead, s / 80)) / s) / 2
        torch.testing.assert_close(found, x)

    @every_schedule
    def test_churn_goes_no_further_than_the_schedule(self, of: Schedule) -> None:
        process, along, asked = process_of(RING, of), times(of, 6), []
        denoise = process.denoise
        process.denoise = lambda x, t: (asked.append(float(t[0])), denoise(x, t))[1]
        trajectory(process, sampler({"edm": {"churn": 40}}), noise(process, along[0], 5, 2), along)
        assert max(asked) <= of.t_max
        assert max(asked[1:]) > along[1]

    @every(["dpm++3", "unipc3"])
    def test_short_trajectories_end_with_lower_order(self, name: str) -> None:
        process, (r, t, s) = process_of(RING, SCHEDULES["vp"]), (0.5, 0.4, 0.25)
        x = noise(process, t, 5, 2)
        means = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0)).double()

        def after(given: str, num_steps: int, steps_left: int) -> Tensor:
            past = Past(num_steps, steps_left, [Point(0.6, x, means[0]), Point(r, x, means[1])])
            return sampler(given).step(process, x, t, s, past)

        assert not torch.equal(after(name, 10, 3), after(name, 10, 2))
        assert torch.equal(after(name, 100, 3), after(name, 100, 2))
        if name == "dpm++3":
            assert torch.equal(after(name, 10, 2), after("dpm++", 10, 9))

    def test_heun_in_the_time_of_edm_is_edm(self) -> None:
        found = [drawn(name, RING, SCHEDULES["edm"], 10, 5, "power") for name in ("heun", "edm")]
        torch.testing.assert_close(*found)

    def test_euler_in_the_time_of_flow_matching_is_ddim(self) -> None:
        """Whose paths are straight, in the noise level as in time."""
        of = SCHEDULES["edm"]
        found = [drawn(name, RING, of, 10, 5, "power") for name in ("euler", "ddim")]
        torch.testing.assert_close(*found)

    def test_first_order_of_all_is_ddim(self) -> None:
        expected = drawn("ddim", RING, SCHEDULES["vp"], 10, 5)
        for variable in ("log", "signal"):
            first = sampler({"dpm++": {"order": 1, "variable": variable}})
            process, along = process_of(RING, SCHEDULES["vp"]), times(SCHEDULES["vp"], 10)
            torch.testing.assert_close(trajectory(process, first, noise(process, along[0], 5, 2), along), expected)

    def test_langevin_steps(self) -> None:
        process, s = process_of(RING, SCHEDULES["vp"]), 0.3
        x = noise(process, 0.5, 5, 2)
        found = ALL["predictor-corrector"].step(process, x, 0.5, s, Past(9, 9))
        process.generator.manual_seed(0)
        x = ALL["ddpm"].step(process, x, 0.5, s, Past(9, 9))
        size = 2 * (0.16 * process.levels(s)[1]) ** 2
        score = RING.score(x, torch.tensor(s).double(), SCHEDULES["vp"])
        torch.testing.assert_close(found, x + size * score + math.sqrt(2 * size) * process.noise(x))

    def test_corrector_leaves_rows_where_they_follow_the_density(self) -> None:
        of, n = SCHEDULES["vp"], 4000
        process, alike = process_of(TWO_PEAKS, of), TWO_PEAKS.marginal(0.3, of)
        x = alike.sample(n, torch.Generator().manual_seed(0))
        x = sampler({"predictor-corrector": {"num_corrections": 100}}).step(process, x, 0.3 + 1e-9, 0.3, Past(9, 9))
        assert scipy.stats.kstest(x[:, 0].numpy(), lambda at: alike.cdf(torch.as_tensor(at)).numpy()).statistic < 0.04


def unipc_of_the_paper(process: Process, x: Tensor, along: list[float], order: int) -> list[Tensor]:
    """Algorithm of arXiv:2302.04867, predicting data, in the words of its authors' code."""
    lambdas = [math.log(alpha / sigma) for alpha, sigma in map(process.levels, along)]
    means, predicted = [process.mean(x, along[0])], [x]
    for i in range(1, len(along)):
        p = min(order, i)
        (_, sigma_0), (alpha, sigma) = process.levels(along[i - 1]), process.levels(along[i])
        h = lambdas[i] - lambdas[i - 1]
        ratios = [(lambdas[i - 1 - k] - lambdas[i - 1]) / h for k in range(1, p)]
        slopes = [(means[-1 - k] - means[-1]) / ratio for k, ratio in zip(range(1, p), ratios, strict=True)]
        ratios.append(1.0)
        b_h, phi, factorial, rows, right = math.expm1(-h), math.expm1(-h) / -h - 1, 1, [], []
        for k in range(1, p + 1):
            rows.append([ratio ** (k - 1) for ratio in ratios])
            right.append(phi * factorial / b_h)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        matrix, vector = torch.tensor(rows).double(), torch.tensor(right).double()
        base = sigma / sigma_0 * x - alpha * b_h * means[-1]
        ahead = [0.5] if p == 2 else torch.linalg.solve(matrix[:-1, :-1], vector[:-1]).tolist()
        after = [0.5] if p == 1 else torch.linalg.solve(matrix, vector).tolist()
        guess = base - alpha * b_h * sum((share * slope for share, slope in zip(ahead, slopes, strict=False)), 0 * x)
        predicted.append(guess)
        mean = process.mean(guess, along[i])
        slopes.append(mean - means[-1])
        x = base - alpha * b_h * sum(share * slope for share, slope in zip(after, slopes, strict=True))
        means.append(mean)
    return predicted


class TestWeights:
    @pytest.mark.parametrize("strength", [1.0, 2.0])
    @pytest.mark.parametrize("fall", [1e-3, 0.7, 12.0])
    def test_integrate_polynomials(self, fall: float, strength: float) -> None:
        places = (-1.0 - 0.4 * fall, -1.0, -1.0 + fall)
        found = weights(-1.0, -1.0 + fall, places, "log", strength)
        for degree in range(3):
            expected, _ = scipy.integrate.quad(
                lambda u, degree=degree: strength * math.exp(strength * (u - places[2])) * u**degree,
                places[1], places[2], epsabs=1e-13, epsrel=1e-13,
            )  # fmt: skip
            sizes = [weight * place**degree for weight, place in zip(found, places, strict=True)]
            assert sum(sizes) == pytest.approx(expected, rel=1e-9, abs=1e-11 * max(map(abs, sizes)))

    @every(["dpm++", "unipc"])
    def test_of_the_signal_are_exact_for_normal_events_of_one_deviation(self, name: str) -> None:
        normal, of = analytic.Gaussian([0.0], [[1.5**2]]), SCHEDULES["flow"]
        process, along = process_of(normal, of), times(of, 7)
        x = noise(process, along[0], 9, 1)
        # From the second step on, where two means are known.
        first = normal.transport(x, float(along[0]), float(along[1]), of)
        past = Past(99, 99, [Point(float(along[0]), x, process.mean(x, float(along[0])))])
        state = first
        for t, s in pairwise(along[1:].tolist()):
            state = ALL[name].step(process, state, t, s, past)
        torch.testing.assert_close(state, normal.transport(x, float(along[0]), float(along[-1]), of))


class TestTrajectory:
    def test_returns_all_states(self) -> None:
        process, along = process_of(RING, SCHEDULES["vp"]), times(SCHEDULES["vp"], 5)
        x = noise(process, along[0], 3, 2)
        seen: list[tuple[int, float, Tensor]] = []
        path = trajectory(process, ALL["unipc"], x, along, lambda *step: seen.append(step), return_trajectory=True)
        assert path.shape == (6, 3, 2)
        assert torch.equal(path[0], x)
        assert torch.equal(path[-1], trajectory(process, ALL["unipc"], x, along))
        assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5]
        assert [t for _, t, _ in seen] == [*along[1:].tolist(), 0.0]
        assert all(torch.equal(state, later) for (_, _, state), later in zip(seen, path[1:], strict=True))

    @pytest.mark.parametrize(
        "along", [[], [0.5, 0.5], [0.2, 0.5], [0.5, 0.0], [0.5, -0.1], [math.nan], [0.5, math.nan]]
    )
    def test_refuses_times_that_do_not_fall(self, along: list[float]) -> None:
        with pytest.raises(ConfigError, match="times must fall and stay above 0"):
            trajectory(process_of(RING, SCHEDULES["vp"]), ALL["ddim"], torch.zeros(1, 2), torch.tensor(along))


class TestNames:
    def test_are_forgiving(self) -> None:
        assert sampler("Euler_Maruyama") == sampler("euler-maruyama")
        assert sampler({"DDIM": None}) == sampler("ddim")
        own = sampler({"dpm++": {"order": 3}})
        assert sampler(own) is own
        assert own == sampler("dpm++3")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("unpic", "unknown 'unpic'; did you mean unipc"),
            (None, "unknown None"),
            ({}, "unknown {}"),
            ({"ddim": {"etta": 1}}, "ddim does not take 'etta'; did you mean eta?"),
            ({"euler": {"eta": 1}}, "euler does not take 'eta'; known: none"),
            ({"ddim": 0.5}, "ddim takes options by name; got 0.5"),
            ({"ddim": {"eta": 1.5}}, "eta must be a number from 0 to 1; got 1.5"),
            ({"ddim": {"eta": "1"}}, "eta must be a number"),
            ({"dpm++": {"order": 4}}, "order must be a whole number from 1 to 3; got 4"),
            ({"dpm++": {"variable": "logg"}}, "variable: got 'logg'; did you mean log"),
            ({"unipc": {"order": 2.5}}, "order must be a whole number"),
            ({"edm": {"churn": -1}}, "churn must be a number from 0"),
            ({"edm": {"churn": math.nan}}, "churn must be a number"),
            ({"predictor-corrector": {"signal_to_noise": 2}}, "signal_to_noise must be a number"),
        ],
    )
    def test_and_errors_say_what_is_wrong(self, given: object, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            sampler(given)

    def test_a_sampler_of_ones_own_needs_one_method(self) -> None:
        class ToTheMean(Sampler):
            def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
                return process.levels(s)[0] * process.mean(x, t)

        process, along = process_of(GAUSSIAN, SCHEDULES["vp"]), times(SCHEDULES["vp"], 5)
        x = trajectory(process, sampler(ToTheMean()), noise(process, along[0], 3, 3), along)
        assert (x.shape, process.nfe) == ((3, 3), 5)


class TestAnalyticDensities:
    """What the tests above rest on, by other ways."""

    @every_schedule
    def test_denoiser_is_tweedies(self, of: Schedule) -> None:
        t = torch.tensor(0.3).double()
        alpha, sigma = of(t)
        x = RING.marginal(t, of).sample(20, torch.Generator().manual_seed(0)).requires_grad_()
        (score,) = torch.autograd.grad(RING.marginal(t, of).log_prob(x).sum(), x)
        torch.testing.assert_close(RING.denoise(x.detach(), t.expand(20), of), (x + sigma**2 * score) / alpha)
        torch.testing.assert_close(RING.score(x.detach(), t.expand(20), of), score)

    def test_density_is_that_of_the_draws(self) -> None:
        x = TWO_PEAKS.sample(20_000, torch.Generator().manual_seed(0))[:, 0]
        assert scipy.stats.kstest(x.numpy(), lambda at: TWO_PEAKS.cdf(torch.as_tensor(at)).numpy()).pvalue > 1e-3
        edges = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
        inside = TWO_PEAKS.log_prob((edges[1:, None] + edges[:-1, None]) / 2).exp() * edges.diff()
        torch.testing.assert_close(inside.cumsum(0), TWO_PEAKS.cdf(edges[1:]), rtol=0, atol=1e-6)

    def test_normalised_has_mean_zero_and_variance_one(self) -> None:
        x = RING.sample(50_000, torch.Generator().manual_seed(0))
        for mean, variance in ((RING.mean, RING.covariance.diagonal()), (x.mean(0), x.var(0))):
            torch.testing.assert_close(mean, torch.zeros(2).double(), rtol=0, atol=0.02)
            torch.testing.assert_close(variance, torch.ones(2).double(), rtol=0, atol=0.02)

    @every_schedule
    def test_transport_keeps_quantiles(self, of: Schedule) -> None:
        one, x = analytic.Gaussian([1.0], [[0.25]]), torch.tensor([[-1.0], [0.0], [2.0]]).double()
        before = one.marginal(0.8, of).cdf(x[:, 0])
        after = one.marginal(0.1, of).cdf(one.transport(x, 0.8, 0.1, of)[:, 0])
        torch.testing.assert_close(before, after)
