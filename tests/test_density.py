"""The contract of a density: shapes, contexts, seeds, units, and what a likelihood record says."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from sciflow.density import Density, Likelihood, Status
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.flows import NSF


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def make(**arguments) -> Density:
    flow = NSF(**{"event_shape": (3,), "num_transforms": 2, "hidden_features": (16, 16), "seed": 0, **arguments})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return flow.eval()


@pytest.fixture(params=["plain", "conditional"])
def density(request: pytest.FixtureRequest) -> Density:
    return make(context_shape=(2,) if request.param == "conditional" else None)


def context_for(density: Density, *batch: int) -> torch.Tensor | None:
    if density.context_shape is None:
        return None
    return torch.randn(*batch, *density.context_shape, generator=torch.Generator().manual_seed(1))


class TestShapes:
    @pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 5), (0,)])
    def test_batch_dimensions_lead_and_come_back(self, density: Density, batch: tuple[int, ...]) -> None:
        x, context = torch.randn(*batch, 3), context_for(density)
        assert density.log_prob(x, context).shape == batch
        assert density.loss(x, context).shape == batch
        assert density.encode(x, context).shape == (*batch, 3)
        assert density.decode(x, context).shape == (*batch, 3)
        record = density.likelihood(x, context)
        assert record.log_prob.shape == record.error.shape == record.nfe.shape == record.status.shape == batch

    @pytest.mark.parametrize("n", [0, 4, (2, 3)])
    def test_draws_lead_the_contexts(self, density: Density, n) -> None:
        lead = (n,) if isinstance(n, int) else n
        assert density.sample(n, context_for(density), seed=0).shape == (*lead, 3)
        if density.context_shape is not None:
            assert density.sample(n, context_for(density, 5), seed=0).shape == (*lead, 5, 3)

    def test_arrays_and_other_dtypes_are_taken_by_value(self, density: Density) -> None:
        x = np.random.default_rng(0).normal(size=(4, 3))
        context = context_for(density)
        expected = density.log_prob(torch.tensor(x, dtype=torch.float32), context)
        assert torch.equal(density.log_prob(x, context), expected)
        assert torch.equal(density.log_prob(torch.tensor(x), context), expected)

    def test_a_wrong_event_shape_is_an_error_that_names_both(self, density: Density) -> None:
        with pytest.raises(ShapeError, match=r"events of shape \[3\] expected.*got \[5, 4\]"):
            density.log_prob(torch.zeros(5, 4), context_for(density))

    def test_shapes_must_be_shapes(self) -> None:
        with pytest.raises(ShapeError, match=r"event_shape must be a sequence, such as \(3,\)"):
            NSF(event_shape=3)
        with pytest.raises(ShapeError, match="event_shape must hold at least one dimension"):
            NSF(event_shape=())
        with pytest.raises(ShapeError, match="event_shape must hold at least one dimension, each of 1 or more"):
            NSF(event_shape=(3, 0))


class TestContext:
    def test_one_for_all_or_one_a_row(self) -> None:
        density = make(context_shape=(2,))
        x, contexts = torch.randn(4, 5, 3), torch.randn(5, 2)
        together = density.log_prob(x, contexts)
        for i in range(5):
            torch.testing.assert_close(together[:, i], density.log_prob(x[:, i], contexts[i]), rtol=0, atol=1e-4)
        assert not torch.allclose(density.log_prob(x[0], contexts[0]), density.log_prob(x[0], contexts[1]))

    def test_columns_go_by_name_where_they_are_known(self) -> None:
        flow, x = make(context_shape=(2,)), torch.randn(5, 3)
        table = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 2)), columns=["c", "d"])
        plain = flow.log_prob(x, table.to_numpy())
        flow.context_columns = ["c", "d"]
        assert torch.equal(flow.log_prob(x, table[["d", "c"]]), plain)
        assert torch.equal(flow.sample(2, table[["d", "c"]], seed=0), flow.sample(2, table.to_numpy(), seed=0))
        with pytest.raises(DataError, match="context: no column 'd'"):
            flow.log_prob(x, table[["c"]])

    def test_those_of_a_store_are_known_where_each_is_one_number(self) -> None:
        flow, x = make(context_shape=(2,)), torch.randn(5, 3)
        table = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 2)), columns=["c", "d"])
        plain = flow.log_prob(x, table.to_numpy())
        flow.layout = {"context": ["c", "d"], "context_size": 2}
        assert torch.equal(flow.log_prob(x, table[["d", "c"]]), plain)
        flow.layout = {"context": ["of two"], "context_size": 2}
        assert torch.equal(flow.log_prob(x, table), plain)

    def test_draws_belong_to_their_context(self) -> None:
        density = make(context_shape=(2,))
        contexts = torch.tensor([[0.0, 0.0], [5.0, -5.0]])
        draws = density.sample(2000, contexts, seed=0)
        for i in range(2):
            alone = density.sample(2000, contexts[i], seed=1)
            assert (draws[:, i].mean(0) - alone.mean(0)).abs().max() < 0.15
        assert (draws[:, 0].mean(0) - draws[:, 1].mean(0)).abs().max() > 0.3

    def test_missing_unwanted_or_unfitting_is_an_error(self) -> None:
        conditional, plain, x = make(context_shape=(2,)), make(), torch.zeros(4, 3)
        with pytest.raises(ShapeError, match=r"conditional: give context of shape \[2\]"):
            conditional.log_prob(x)
        with pytest.raises(ShapeError, match=r"context of shape \[2\] expected, got \[4, 3\]"):
            conditional.log_prob(x, x)
        with pytest.raises(ShapeError, match=r"context rows \[3\] do not broadcast over event rows \[4\]"):
            conditional.log_prob(x, torch.zeros(3, 2))
        with pytest.raises(ShapeError, match="has no context"):
            plain.log_prob(x, torch.zeros(2))
        with pytest.raises(ShapeError, match="conditional"):
            conditional.sample(3)


class TestSeeds:
    def test_the_same_seed_draws_the_same(self, density: Density) -> None:
        context = context_for(density)
        first, again, other = (density.sample(6, context, seed=s) for s in (1, 1, 2))
        by_generator = density.sample(6, context, seed=torch.Generator().manual_seed(1))
        assert torch.equal(first, again)
        assert torch.equal(first, by_generator)
        assert not torch.equal(first, other)

    def test_draws_are_cut_off_from_the_graph(self, density: Density) -> None:
        assert not density.sample(2, context_for(density)).requires_grad


class TestNumbers:
    """What users hand over is taken for what it is, or refused."""

    @pytest.mark.parametrize("seed", [3, np.int64(3), torch.Generator().manual_seed(3)])
    def test_seeds_and_counts_may_be_numpys(self, seed) -> None:
        plain = make().sample(4, seed=torch.Generator().manual_seed(3))
        assert torch.equal(make().sample(np.int64(4), seed=seed), plain)

    @pytest.mark.parametrize(("n", "seed"), [(2.5, 0), ("4", 0), (None, 0), (4, 1.5), (4, "a"), (4, -1), (4, 1 << 70)])
    def test_others_are_errors(self, n, seed) -> None:
        with pytest.raises((ShapeError, ConfigError), match=r"cannot draw|seed"):
            make().sample(n, seed=seed)

    def test_what_is_masked_is_missing(self) -> None:
        x = np.ma.masked_greater(np.array([[0.0, 1.0, 900.0], [0.0, 1.0, 2.0]]), 100)
        assert torch.isnan(make().log_prob(x)).tolist() == [True, False]

    @pytest.mark.parametrize(
        "values",
        [
            np.ones(3) + 1j,
            torch.ones(3) + 1j,
            np.ones(3, "M8[s]"),
            np.array(["1", "2", "3"]),
            [1.0, None, "x"],
            [[1.0], [1.0, 2.0]],
            [10**400, 1, 1],
        ],
        ids=["complex", "complex tensor", "dates", "strings", "objects", "ragged", "beyond floats"],
    )
    def test_what_is_no_number_is_refused(self, values) -> None:
        with pytest.raises(DataError, match="events are made of"):
            make().log_prob(values)
        with pytest.raises(DataError, match=r"context are made of|context.*numbers"):
            make(context_shape=(3,)).log_prob(torch.zeros(3), values)

    @pytest.mark.filterwarnings("ignore")  # torch's own, of kinds of tensors that are young or old
    @pytest.mark.parametrize("kind", ["sparse", "csr", "meta", "nested", "quantised"])
    def test_a_tensor_that_is_no_plain_array_is_refused(self, kind: str) -> None:
        values = {
            "sparse": lambda: torch.eye(3).to_sparse(),
            "csr": lambda: torch.eye(3).to_sparse_csr(),
            "meta": lambda: torch.zeros(3, device="meta"),
            "nested": lambda: torch.nested.nested_tensor([torch.zeros(3)]),
            "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        }[kind]()
        for of in (make().log_prob, make().encode, make().decode):
            with pytest.raises(DataError, match=r"events: a sparse, nested or quantised tensor, .*: give a dense one"):
                of(values)
        with pytest.raises(DataError, match="context: a sparse, nested"):
            make(context_shape=(3,)).sample(2, values)

    def test_tensors_in_a_list_have_no_gradient_to_give(self) -> None:
        with pytest.raises(DataError, match="events are made of numbers"):
            make().loss([torch.zeros(3, requires_grad=True)])

    @pytest.mark.parametrize("n", [10**15, 2**70, (2**40, 2**40)])
    def test_draws_that_no_memory_holds_are_refused(self, n) -> None:
        with pytest.raises(ShapeError, match=r"cannot draw .* events at once"):
            make().sample(n)

    def test_columns_go_by_name_where_they_are_known(self) -> None:
        flow = make()
        table = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 3)), columns=list("abc"))
        plain = flow.log_prob(table.to_numpy())
        flow.layout = {"variables": ["a", "b", "c"], "event_dims": []}
        assert torch.equal(flow.log_prob(table[["c", "a", "b"]].assign(d=1.0)), plain)
        with pytest.raises(DataError, match="events: no column 'b'"):
            flow.log_prob(table[["a", "c"]])

    def test_those_who_work_with_arrays_get_numbers(self, density: Density) -> None:
        x, context = np.zeros((2, 3)), context_for(density)
        context = None if context is None else context.numpy()
        for result in (density.log_prob(x, context), density.encode(x, context), density.decode(x, context)):
            assert not result.requires_grad
        context = None if context is None else torch.from_numpy(context)
        assert density.log_prob(torch.zeros(2, 3), context).requires_grad


class TestUnits:
    @pytest.mark.parametrize("preprocess", ["standardize", "log1p", ["log1p", "standardize"], "logit"])
    def test_a_change_of_units_moves_log_p_by_exactly_its_jacobian(self, preprocess) -> None:
        x = torch.distributions.LogNormal(0.0, 0.7).sample((500, 3)).double()
        units = torch.tensor([1000.0, 0.01, 3.6], dtype=torch.float64)
        density = make(preprocess=preprocess).double()
        density.fit_preprocessing(x)
        before, loss = density.log_prob(x), density.loss(x)
        density.fit_preprocessing(x * units)
        torch.testing.assert_close(density.log_prob(x * units), before - units.log().sum(), rtol=0, atol=1e-6)
        torch.testing.assert_close(density.loss(x * units), loss + units.log().sum(), rtol=0, atol=1e-6)

    def test_units_of_the_context_do_not_count(self) -> None:
        density, x = make(context_shape=(2,)).double(), torch.randn(50, 3)
        context = torch.randn(50, 2, dtype=torch.float64)
        density.fit_preprocessing(x, context)
        before = density.log_prob(x, context)
        density.fit_preprocessing(x, 100 * context)
        torch.testing.assert_close(density.log_prob(x, 100 * context), before)

    def test_draws_are_in_data_units(self) -> None:
        density = NSF(event_shape=(2,), num_transforms=1, seed=0)
        density.fit_preprocessing(torch.randn(1000, 2) * 8 + 280)
        draws = density.sample(4000, seed=0)
        assert (draws.mean(0) - 280).abs().max() < 1
        assert (draws.std(0) - 8).abs().max() < 1


class TestLikelihood:
    def test_a_bad_row_has_a_status_and_spoils_no_other(self, density: Density) -> None:
        x, context = torch.randn(5, 3), context_for(density)
        expected = density.likelihood(x, context)
        x[1, 0], x[3, 2] = torch.nan, torch.inf
        record = density.likelihood(x, context)
        assert record.status.tolist() == [Status.OK, Status.NON_FINITE, Status.OK, Status.NON_FINITE, Status.OK]
        good = record.status == Status.OK
        torch.testing.assert_close(record.log_prob[good], expected.log_prob[good])
        assert ", 3 ok)" in repr(record)

    def test_an_impossible_row_is_certain(self) -> None:
        density = make(preprocess={"logit": {"low": 0, "high": 1}})
        record = density.likelihood(torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 1.5]]))
        assert record.log_prob[1] == -math.inf
        assert record.status.tolist() == [Status.OK, Status.OK]

    def test_a_bad_context_is_no_better_than_a_bad_event(self) -> None:
        flow = make(context_shape=(2,))
        for far in (0.0, 50.0):
            record = flow.likelihood(torch.full((3, 3), far), torch.tensor([[0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0]]))
            assert record.status.tolist() == [Status.OK, Status.NON_FINITE, Status.NON_FINITE]
            assert record.log_prob.isnan().tolist() == record.error.isnan().tolist() == [False, True, True]

    def test_an_underflow_is_not_certain(self, density: Density) -> None:
        x = torch.tensor([[0.0, 0, 0], [1e25, 0, 0]])
        record = density.likelihood(x, context_for(density))
        assert record.status.tolist() == [Status.OK, Status.UNDERFLOW]
        assert record.error.isnan().tolist() == [False, True]

    def test_an_exact_one_agrees_with_log_prob(self, density: Density) -> None:
        x, context = torch.randn(4, 3), context_for(density)
        record = density.likelihood(x, context)
        assert record.kind == "exact"
        assert torch.equal(record.log_prob, density.log_prob(x, context))
        assert record.error.tolist() == [0.0] * 4
        assert record.nfe.tolist() == [1] * 4
        assert len(record) == 4

    def test_repr_when_no_row_is_ok(self) -> None:
        row = torch.full((2,), torch.nan)
        status = torch.full((2,), int(Status.NON_FINITE))
        assert repr(Likelihood(row, row, row, status, "exact")) == "Likelihood(exact, 2 rows: none ok)"
