"""What a record of log p says of itself, where some rows are known less well than was asked for."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.likelihood import Likelihood, Status, importance_weighted

OK, MAX_STEPS, NON_FINITE, MISSED = Status.OK, Status.MAX_STEPS, Status.NON_FINITE, Status.TARGET_MISSED


def record(*status: Status, kind: str = "ode") -> Likelihood:
    number = torch.arange(1.0, 1 + len(status))
    return Likelihood(-number, number / 100, 10 * number.int(), torch.tensor([int(s) for s in status]), kind)


class TestItsRepr:
    def test_counts_rows_that_missed_the_target_among_those_to_rely_on(self):
        said = "Likelihood(ode, 4 rows: log_prob -2 +- 1, error <= 0.03 nats, nfe 10..30, 2 ok, 1 missed the target)"
        assert repr(record(OK, MISSED, OK, NON_FINITE)) == said

    def test_does_not_speak_of_them_where_there_are_none(self):
        assert repr(record(OK, OK, MAX_STEPS)).endswith("nfe 10..20, 2 ok)")

    def test_knows_log_p_where_all_missed_it(self):
        said = (
            "Likelihood(few-step, 1 rows: log_prob -1 +- 0, error <= 0.01 nats, nfe 10..10, 0 ok, 1 missed the target)"
        )
        assert repr(record(MISSED, kind="few-step")) == said


@pytest.mark.parametrize(
    ("draws", "row"),
    [
        ((OK, OK, OK, OK), OK),
        ((OK, MISSED, OK, OK), MISSED),
        ((MISSED, MAX_STEPS, OK, OK), MAX_STEPS),
        ((MISSED, MISSED, NON_FINITE, MAX_STEPS), NON_FINITE),
    ],
    ids=str,
)
def test_a_row_of_several_draws_is_as_its_worst_and_to_miss_a_target_is_less_bad_than_to_fail(draws, row):
    each = record(*draws).reshape((4, 1))
    found = importance_weighted(each)
    assert found.status.tolist() == [row]
    assert found.status.dtype == each.status.dtype
    weights = [math.exp(-n - (n / 100) ** 2 / 2) for n in range(1, 5)]
    assert found.log_prob.item() == pytest.approx(math.log(sum(weights) / 4))


def test_weights_of_estimates_are_right_on_average():
    error = 0.5 * torch.ones(4, 20_000)
    estimates = error * torch.randn(error.shape, generator=torch.Generator().manual_seed(0))
    status = torch.zeros_like(error, dtype=torch.int32)
    found = importance_weighted(Likelihood(estimates, error, status, status, "ode"))
    assert found.log_prob.exp().mean().item() == pytest.approx(1, abs=0.01)
    assert estimates.exp().mean().item() > 1.1
