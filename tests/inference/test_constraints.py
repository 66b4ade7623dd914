"""One suite over every constraint: a new one joins EVERY by one line, and DENSITIES by another."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Gamma, Normal

from sciflow.errors import ConfigError, SciflowError, ShapeError
from sciflow.inference import Parameters, as_constraint, interval, ordered, positive, real, simplex
from sciflow.inference.constraint import Constraint, grow, ungrow
from sciflow.inference.intervals import Interval

EVERY = [
    real,
    real(3),
    positive,
    positive((2, 2)),
    interval(-1, 1),
    interval(0.0, [1.0, 1e4, 2e-3]),
    interval(low=5.0),
    interval(low=-1e6, shape=2),
    interval(high=-5.0, shape=(1, 2)),
    interval([-math.inf, -math.inf, 0.0, 2.0], [math.inf, 3.0, math.inf, 2.5]),
    simplex(2),
    simplex(5),
    ordered(2),
    ordered(4),
]
DTYPES = [torch.float32, torch.float64]


def free_rows(constraint: Constraint, *batch: int, scale: float = 1.5, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(len(batch))
    return scale * torch.randn(*batch, constraint.num_free, generator=generator, dtype=dtype)


def free_coordinates(constraint: Constraint, value: Tensor) -> Tensor:
    """Those in which volume is measured."""
    return value[..., :-1] if constraint.name == "simplex" else value.flatten(value.ndim - len(constraint.shape))


@pytest.mark.parametrize("constraint", EVERY, ids=repr)
class TestEveryConstraint:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_to_free_undoes_from_free(self, constraint: Constraint, dtype: torch.dtype) -> None:
        bounds = [constraint.low, constraint.high] if isinstance(constraint, Interval) else []
        largest = max([1.0, *(bound.abs().nan_to_num(posinf=0).max().item() for bound in bounds)])
        for batch in ((), (7,), (2, 3)):
            free = free_rows(constraint, *batch, dtype=dtype)
            value, log_det = constraint.from_free(free)
            assert value.shape == (*batch, *constraint.shape)
            assert log_det.shape == batch
            assert value.dtype == log_det.dtype == dtype
            back, log_det_back = constraint.to_free(value)
            # Next to a bound of a million, the digits are gone.
            tolerance = 2e2 * torch.finfo(dtype).eps * largest
            assert (back - free).abs().max() <= tolerance
            assert (log_det + log_det_back).abs().max() <= 10 * tolerance

    def test_log_det_is_that_of_the_jacobian(self, constraint: Constraint) -> None:
        for scale in (0.0, 1.5, 20.0):
            for free in free_rows(constraint, 5, scale=scale):
                jacobian = torch.autograd.functional.jacobian(
                    lambda u: free_coordinates(constraint, constraint.from_free(u)[0]).reshape(-1), free
                )
                assert jacobian.slogdet().logabsdet == pytest.approx(constraint.from_free(free)[1].item(), abs=1e-4)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("far", [30.0, 80.0, 100.0, 400.0])
    def test_far_out(self, constraint: Constraint, far: float, dtype: torch.dtype) -> None:
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * constraint.num_free).view(-1, constraint.num_free)
        free = (far * signs.to(dtype)).requires_grad_()
        value, log_det = constraint.from_free(free)
        constraint.require(value, "value")
        assert log_det.isfinite().all()
        for of in (value.sum(), log_det.sum()):
            (gradient,) = torch.autograd.grad(of, free, retain_graph=True)
            assert gradient.isfinite().all()

    def test_values_follow_the_formula_as_far_as_it_reaches(self, constraint: Constraint) -> None:
        """An exponential doubles for every log 2, up to where floats end, and no further."""
        reach = constraint.reach(torch.float64)
        assert reach.shape == (constraint.num_free,)
        for place in torch.nonzero(reach.isfinite())[:, 0].tolist():
            far = torch.zeros(3, constraint.num_free, dtype=torch.float64)
            far[:, place] = reach[place] + torch.tensor([-2.0, -1.0, 1.0]) * math.log(2)
            log_det = constraint.from_free(far)[1]
            assert log_det.diff()[0] == pytest.approx(math.log(2), abs=1e-3)
            assert log_det.diff()[1] < 1.9 * math.log(2)

    def test_json(self, constraint: Constraint) -> None:
        text = json.dumps(constraint.to_json(), allow_nan=False)
        again = as_constraint(json.loads(text))
        assert again == constraint
        assert hash(again) == hash(constraint)
        free = free_rows(constraint, 3)
        assert torch.equal(again.from_free(free)[0], constraint.from_free(free)[0])

    def test_wrong_shapes(self, constraint: Constraint) -> None:
        with pytest.raises(ShapeError, match=r"takes unconstrained numbers"):
            constraint.from_free(torch.zeros(4, constraint.num_free + 1))
        if constraint.shape:
            with pytest.raises(ShapeError, match=r"must have shape"):
                constraint.to_free(torch.zeros(*constraint.shape[:-1], constraint.shape[-1] + 1))

    def test_values_that_are_not_inside(self, constraint: Constraint) -> None:
        inside = constraint.from_free(free_rows(constraint, 2))[0]
        bad = [torch.full_like(inside, math.nan)]
        if constraint.name != "interval" or constraint.low.isfinite().any():
            bad.append(inside.clone().fill_(-1e7))
        for value in bad:
            with pytest.raises(ConfigError, match=r"does not fit .* it must be"):
                constraint.to_free(value)


def ordered_normals(value: Tensor) -> Tensor:
    return Normal(0, 1).log_prob(value).sum(-1) + math.lgamma(value.shape[-1] + 1)


DENSITIES = [
    (real, Normal(0.5, 2.0).log_prob),
    (positive, Gamma(2.5, 1.5).log_prob),
    (interval(0, 1), Beta(0.7, 2.5).log_prob),
    (interval(-2, 3), lambda value: Beta(2.0, 3.0).log_prob((value + 2) / 5) - math.log(5)),
    (interval(low=4), lambda value: Gamma(2.5, 1.5).log_prob(value - 4)),
    (interval(high=4), lambda value: Gamma(2.5, 1.5).log_prob(4 - value)),
    (simplex(2), Dirichlet(torch.tensor([2.0, 0.8], dtype=torch.float64)).log_prob),
    (simplex(3), Dirichlet(torch.tensor([2.0, 0.8, 3.0], dtype=torch.float64)).log_prob),
    (ordered(2), ordered_normals),
]


@pytest.mark.parametrize(
    ("constraint", "log_density"), DENSITIES, ids=[repr(constraint) for constraint, _ in DENSITIES]
)
def test_a_known_density_integrates_to_one(constraint, log_density):
    points, step = torch.linspace(-30, 30, 1001 if constraint.num_free > 1 else 20_001, dtype=torch.float64), None
    step = points[1] - points[0]
    free = torch.cartesian_prod(*[points] * constraint.num_free).view(-1, constraint.num_free)
    value, log_det = constraint.from_free(free)
    log_p = log_density(value.clamp(1e-300, 1 - 1e-16) if constraint.name == "simplex" else value) + log_det
    assert (log_p.exp().sum() * step**constraint.num_free).item() == pytest.approx(1, abs=1e-5)


def test_three_ordered_normals_integrate_to_one():
    points = torch.linspace(-9, 5, 141, dtype=torch.float64)
    value, log_det = ordered(3).from_free(torch.cartesian_prod(points, points, points))
    total = (ordered_normals(value) + log_det).exp().sum() * (points[1] - points[0]) ** 3
    assert total.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exponential_goes_on_as_a_bijection_with_its_own_jacobian(dtype):
    free = torch.linspace(-1000, 1000, 4001, dtype=dtype, requires_grad=True)
    value, log_slope = grow(free)
    (slope,) = torch.autograd.grad(value.sum(), free)
    # The slope of the hyperbola may leave what floats hold; its logarithm may not.
    held = slope >= torch.finfo(dtype).tiny
    assert (slope.log() - log_slope)[held].abs().max() < 1e-4
    assert held.sum() > 2000
    assert log_slope.isfinite().all()
    assert (value.diff() > 0).all()
    assert torch.allclose(ungrow(value), free, rtol=1e-3)
    near = free.abs() < 70
    assert torch.allclose(value[near], free[near].exp())


def test_the_simplex_has_its_centre_at_zero():
    assert torch.allclose(simplex(7).from_free(torch.zeros(6))[0], torch.full((7,), 1 / 7))


def test_gradients_at_zero_are_those_of_the_map():
    """Where two branches meet, at the start that everybody uses."""
    free = torch.zeros(1, requires_grad=True)
    (gradient,) = torch.autograd.grad(interval(-1, 1).from_free(free)[0], free)
    assert gradient.item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("given", "is_"),
    [
        ("real", real),
        ("positive", positive),
        (("positive", 3), positive(3)),
        (("positive", (2, 2)), positive((2, 2))),
        (("positive", 2, 2), positive((2, 2))),
        ({"positive": [2, 2]}, positive((2, 2))),
        ({"real": 8}, real(8)),
        ({"real": {"shape": [8]}}, real(8)),
        (("interval", 0, 1), interval(0, 1)),
        ({"interval": [0, 1]}, interval(0, 1)),
        ({"interval": {"low": 0, "high": 1, "shape": [2]}}, interval(0, 1, 2)),
        (("interval", 0, math.inf), positive),
        ({"simplex": 3}, simplex(3)),
        (("ordered", 3), ordered(3)),
        (interval(-1, 1)(3), interval(-1, 1, (3,))),
    ],
)
def test_by_name(given, is_):
    assert as_constraint(given) == is_


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: interval(1, 1), "low must be below high"),
        (lambda: interval(2, [3, 1]), "low must be below high"),
        (lambda: interval(1e8, 1e8 + 1), "float32 must tell them"),
        (lambda: interval(-3e38, 3e38), "distance apart"),
        (lambda: interval(0, 1e39), "distance apart"),
        (lambda: interval(0, 1e-50), "float32 must tell them"),
        (lambda: interval(math.inf, math.inf), "low must be below high"),
        (lambda: interval(math.nan, 1), "low must be a number"),
        (lambda: interval("a", 1), "low are made of"),
        (lambda: interval([0, 0], [1, 1, 1]), "one shape"),
        (lambda: interval([0, 0], 1, 3), "do not broadcast"),
        (lambda: real(0), "each of 1 or more"),
        (lambda: real(-1), "each of 1 or more"),
        (lambda: positive(2.5), "whole numbers"),
        (lambda: simplex(1), "2 or more"),
        (lambda: simplex(2.5), "2 or more"),
        (lambda: ordered(True), "2 or more"),
        (lambda: as_constraint("positiv"), "did you mean positive"),
        (lambda: as_constraint(3), "known: interval"),
        (lambda: as_constraint({"interval": {"lower": 0}}), "interval does not take"),
        (lambda: as_constraint("simplex"), "simplex does not take"),
        (lambda: Parameters({}), "mapping from names"),
        (lambda: Parameters({"a b": real}), "a name is made of"),
        (lambda: Parameters({"tau": "half-normal"}), "parameter tau: unknown"),
    ],
)
def test_nonsense_is_refused(wrong, message):
    with pytest.raises(SciflowError, match=message):
        wrong()


PARAMETERS = Parameters(
    {"mu": real, "tau": positive, "theta": real(3), "p": simplex(3), "s": positive((2, 2)), "cut": ordered(2)}
)


class TestParameters:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
    def test_pack_undoes_unpack(self, batch, dtype):
        free = torch.randn(*batch, PARAMETERS.num_free, generator=torch.Generator().manual_seed(0), dtype=dtype)
        values, log_det = PARAMETERS.unpack(free)
        assert {name: value.shape[len(batch) :] for name, value in values.items()} == {
            name: constraint.shape for name, constraint in PARAMETERS.items()
        }
        parts = zip(PARAMETERS.values(), free.split([1, 1, 3, 2, 4, 2], -1), strict=True)
        terms = [constraint.from_free(part)[1] for constraint, part in parts]
        assert torch.allclose(log_det, sum(terms))
        assert log_det.shape == batch
        back = PARAMETERS.pack(values)
        assert back.dtype == dtype
        assert torch.allclose(back, free, atol=1e-4)

    def test_flatten_follows_the_labels(self):
        values, _ = PARAMETERS.unpack(torch.randn(4, PARAMETERS.num_free))
        rows = PARAMETERS.flatten(values)
        assert rows.shape == (4, PARAMETERS.num_values) == (4, len(PARAMETERS.labels))
        assert torch.equal(rows[:, PARAMETERS.labels.index("s[1,0]")], values["s"][:, 1, 0])
        assert torch.equal(rows[:, PARAMETERS.labels.index("tau")], values["tau"])
        again = PARAMETERS.unflatten(rows)
        assert all(torch.equal(again[name], values[name]) for name in PARAMETERS)

    def test_starts_broadcast_and_come_as_numbers_and_arrays(self):
        some = Parameters({"mu": real, "theta": positive(2)})
        assert some.pack({"mu": 0, "theta": [1, 1]}).tolist() == [0, 0, 0]
        assert some.pack({"theta": torch.ones(5, 2, dtype=torch.float64), "mu": 0}).shape == (5, 3)
        assert some.pack({"theta": torch.ones(5, 2, dtype=torch.float64), "mu": 0}).dtype == torch.float64

    def test_a_start_keeps_its_gradient(self):
        tau = torch.tensor(2.0, requires_grad=True)
        Parameters({"tau": positive}).pack({"tau": tau}).sum().backward()
        assert tau.grad.item() == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("start", "message"),
        [
            ({"mu": 0.0, "tau": -1.0}, r"parameter tau = -1.0 does not fit positive: it must be finite and above 0"),
            ({"mu": math.nan, "tau": 1.0}, r"parameter mu = nan does not fit real: it must be finite"),
            ({"mu": [1.0, 2.0], "tau": [1.0, 1.0, 1.0]}, r"do not broadcast"),
            ({"mu": 0.0}, r"no value of parameter tau"),
            ({"mu": 0.0, "tau": 1.0, "tua": 1.0}, r"unknown parameter 'tua'; did you mean tau"),
            ([0.0, 1.0], r"by name: mu, tau"),
        ],
    )
    def test_a_start_that_does_not_fit(self, start, message):
        with pytest.raises(SciflowError, match=message):
            Parameters({"mu": real, "tau": positive}).pack(start)

    def test_wrong_shapes(self):
        for wrong in (lambda: PARAMETERS.unpack(torch.zeros(3, 1)), lambda: PARAMETERS.unflatten(torch.zeros(3, 1))):
            with pytest.raises(ShapeError, match="got"):
                wrong()
        with pytest.raises(ShapeError, match="parameter theta must have shape"):
            Parameters({"theta": real(3)}).flatten({"theta": torch.zeros(2)})

    def test_json(self):
        text = json.dumps(PARAMETERS.to_json(), allow_nan=False)
        again = Parameters.from_json(json.loads(text))
        assert again == PARAMETERS
        assert again.names == PARAMETERS.names
