"""Log densities as users write them: which form they have, what they lack, and what becomes of rows without a value."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.errors import ConfigError, DataError, DerivativeError, ShapeError
from sciflow.inference import LogDensity, interval, positive


def normal(x: Tensor) -> Tensor:
    return -0.5 * (x**2).sum(-1)


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "of rows": (normal, "rows"),
    "of one event": (lambda x: -0.5 * (x**2).sum(), "one"),
    "of one event, by its elements": (lambda x: -0.5 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2), "one"),
    "of one event, with a branch": (lambda x: normal(x) if x[2].item() > 0 else -0.5 * (x @ x), "loop"),
}


@pytest.mark.parametrize(("function", "form"), FORMS.values(), ids=FORMS)
class TestEveryForm:
    def test_is_found_out(self, function: Callable[[Tensor], Tensor], form: str) -> None:
        assert LogDensity(function, event_shape=(3,)).form == form

    def test_gives_one_value_a_row(self, function: Callable[[Tensor], Tensor], form: str) -> None:
        rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.allclose(LogDensity(function, event_shape=(3,))(rows), normal(rows))

    def test_has_a_gradient(self, function: Callable[[Tensor], Tensor], form: str) -> None:
        rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        _, gradient = LogDensity(function, event_shape=(3,)).with_gradient(rows)
        assert torch.allclose(gradient, -rows)


class TestParameters:
    def test_come_by_keyword_or_as_one_mapping(self) -> None:
        by_keyword = LogDensity(lambda mu, tau: -(mu**2) - tau, parameters={"mu": "real", "tau": positive})
        as_mapping = LogDensity(lambda p: -(p["mu"] ** 2) - p["tau"], parameters={"mu": "real", "tau": positive})
        rows = torch.ones(4, 2, dtype=torch.float64)
        assert torch.equal(by_keyword(rows), as_mapping(rows))

    def test_count_their_jacobian(self) -> None:
        """A density of 1 on (2, 5) is one of the logistic distribution, times 3, on the real line."""
        density = LogDensity(lambda p: 0.0 * p, parameters={"p": interval(2, 5)})
        u = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
        expected = math.log(3) + torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
        assert torch.allclose(density(u), expected[:, 0])

    def test_must_be_those_that_the_function_takes(self) -> None:
        with pytest.raises(ConfigError, match="does not take the parameters mu, tau"):
            LogDensity(lambda mu, sigma: mu + sigma, parameters={"mu": "real", "tau": positive})


class TestRowsWithoutAValue:
    @staticmethod
    def holed(x: Tensor) -> Tensor:
        """NaN above 1, with a gradient of NaN; -inf below -1."""
        return torch.where(x[:, 0] < -1, -math.inf, normal(x) + 0 * torch.sqrt(1 - x[:, 0]))

    def test_count_as_outside_the_support(self) -> None:
        density = LogDensity(self.holed, event_shape=2)
        values = density(torch.tensor([[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64))
        assert values.tolist() == [0.0, -math.inf, -math.inf]
        assert (density.counts.not_finite, density.counts.outside) == (1, 1)

    def test_have_no_gradient_and_spoil_none(self) -> None:
        density = LogDensity(self.holed, event_shape=2)
        rows = torch.tensor([[0.5, 1.0], [2.0, 1.0]], dtype=torch.float64)
        assert density.with_gradient(rows)[1].tolist() == [[-0.5, -1.0], [0.0, 0.0]]
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        values, usable = density.differentiable(scale * rows)
        values.sum().backward()
        assert usable.tolist() == [True, False]
        assert scale.grad is not None
        assert scale.grad.item() == pytest.approx(-1.25)


class TestBadInput:
    def test_a_vector_where_a_number_is_expected(self) -> None:
        with pytest.raises(ShapeError, match="one event to one number"):
            LogDensity(lambda x: x**2, event_shape=(3,))

    def test_no_gradient(self) -> None:
        with pytest.raises(DerivativeError, match="torch operations"):
            LogDensity(lambda x: torch.from_numpy((x.detach().numpy() ** 2).sum(-1)), event_shape=(3,))

    def test_a_function_that_fails(self) -> None:
        with pytest.raises(DataError, match="no such file"):
            LogDensity(lambda x: (_ for _ in ()).throw(OSError("no such file")), event_shape=(3,))

    def test_one_that_fails_somewhere_else(self) -> None:
        def small(x: Tensor) -> Tensor:
            if bool((x > 1).any()):
                raise ValueError("too large")
            return normal(x)

        with pytest.raises(DataError, match=r"some of 1 places.*too large.*-inf where the density is zero"):
            LogDensity(small, event_shape=3)(torch.full((1, 3), 2.0, dtype=torch.float64))

    def test_complex_numbers(self) -> None:
        with pytest.raises(ShapeError, match="complex"):
            LogDensity(lambda x: normal(x) * (1 + 0j), event_shape=3)

    def test_draws_of_its_own_are_noted(self) -> None:
        assert not LogDensity(normal, event_shape=3).notes
        (note,) = LogDensity(lambda x: normal(x) + torch.randn(()), event_shape=3).notes
        assert "other values when it is asked again" in note

    def test_another_name_than_that_of_the_parameter(self) -> None:
        with pytest.raises(DataError, match="one mapping, since it does not take tau by keyword"):
            LogDensity(lambda mu: -0.5 * mu**2, parameters={"tau": "real"})

    @pytest.mark.parametrize("wrong", [{"dtype": torch.int32}, {"dtype": "float64"}, {"device": "cuda:99"}], ids=str)
    def test_what_it_cannot_be_computed_in(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LogDensity(normal, event_shape=3, **wrong)

    def test_neither_event_nor_parameters(self) -> None:
        with pytest.raises(ConfigError, match="give event_shape, or parameters"):
            LogDensity(normal)

    def test_what_is_no_function(self) -> None:
        with pytest.raises(ConfigError, match="a function expected"):
            LogDensity(3.0, event_shape=2)  # type: ignore[arg-type]

    def test_float32_data_are_met_in_float32(self) -> None:
        matrix = torch.randn(5, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            density = LogDensity(lambda x: -(x @ matrix.T).square().sum(-1), event_shape=3)
        assert density.dtype == torch.float32
