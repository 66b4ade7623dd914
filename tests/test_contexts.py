"""Densities conditioned on labels, vectors, fields, tokens, and mixes of them: what is learned, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sciflow as sf
from sciflow.bijections import context_preprocessing
from sciflow.conditions import Conditions
from sciflow.contexts import Context, Contexts, Field, Label, Tokens, Vector
from sciflow.density import Status
from sciflow.errors import ConfigError, DataError, LayoutError, ShapeError, TrainingError
from sciflow.families import build
from sciflow.flows import MAF, NSF
from sciflow.flows.context_features import ContextFeatures, num_context_features

KINDS: dict[str, Context] = {
    "season": Label(4),
    "place": Vector(2),
    "coarse": Field((1, 2, 2)),
    "words": Tokens(3, vocabulary=5),
    "reports": Tokens(2, features=2),
}
MIX = {"season": Label(4), "place": (2,), "coarse": Field((1, 2, 2)), "words": Tokens(3, vocabulary=5)}
NAN = float("nan")


def draw(n: int, seed: int) -> dict[str, np.ndarray]:
    """Contexts of every kind, some tokens fewer than others, in units far from 1."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 5, (n, 3)).astype(float)
    words[rng.random((n, 3)) < 0.3] = -1
    reports = rng.normal(5, 2, (n, 2, 2))
    reports[rng.random(n) < 0.3, 1] = np.nan
    return {
        "season": rng.integers(0, 4, n),
        "place": rng.normal(0, 100, (n, 2)),
        "coarse": rng.normal(280, 5, (n, 1, 2, 2)),
        "words": words,
        "reports": reports,
    }


def effect(name: str, values: np.ndarray) -> np.ndarray:
    """What one context adds to the mean of the event."""
    if name == "season":
        return np.array([-2.0, 0, 1, 3])[values]
    if name == "place":
        return values @ [0.005, -0.01]
    if name == "coarse":
        return (values.mean((1, 2, 3)) - 280) / 2
    if name == "words":
        of_word = np.array([-2.0, -1, 0, 1, 2, 0])[values.astype(int)]
        return of_word.sum(1) / np.maximum(1, (values >= 0).sum(1))
    return np.nanmean(values[..., 0], 1) - 5


def small(context_shape: Any, **arguments: Any) -> NSF:
    sizes = {"event_shape": (2,), "num_transforms": 1, "hidden_features": (8,), "seed": 0}
    flow = NSF(context_shape=context_shape, **{**sizes, **arguments})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return flow.eval()


def some(**changes: Any) -> dict[str, Any]:
    """One context of the mix."""
    return {"season": 2, "place": [0.5, 1.0], "coarse": np.ones((1, 2, 2)), "words": [1, 4, -1]} | changes


class TestKinds:
    def test_what_they_are_made_of_is_checked(self) -> None:
        for wrong, message in (
            (lambda: Label(1), "num_classes must be a whole number from 2 to 1,048,576; got 1"),
            (lambda: Label(1 << 24), "num_classes must be a whole number from 2 to 1,048,576; got 16777216"),
            (lambda: Tokens(3, vocabulary=1 << 24), "vocabulary must be a whole number from 1 to 1,048,576"),
            (lambda: Label(2.5), "num_classes must be a whole number"),
            (lambda: Vector(True), "size must be a whole number"),
            (lambda: Field((8,)), "sizes must be those of channels and one grid dimension or more"),
            (lambda: Field((1, 0)), "each of sizes must be a whole number"),
            (lambda: Tokens(3), "give vocabulary, for numbers of words, or features"),
            (lambda: Tokens(3, vocabulary=4, features=2), "one of both"),
            (lambda: Contexts({}), "no contexts"),
            (lambda: Contexts({3: Label(4)}), "have names that are texts; got 3"),
            (lambda: Contexts({"season": {"lable": 4}}), "season: unknown 'lable'; did you mean label"),
            (lambda: Contexts({"season": {"label": {"classes": 4}}}), "season: label does not take"),
            (lambda: Contexts({"season": [Label(4)]}), "^context_shape: season: Vector: size must be a whole number"),
            (lambda: Contexts({"season": ()}), "^context_shape: season: Field: sizes must be those"),
            (lambda: Contexts({"season": np.array(4)}), "^context_shape: season: a context or a shape expected"),
            (lambda: Contexts({"season": 4}), r"season: a context or a shape expected, .*\{label: 4\}.*; got 4"),
        ):
            with pytest.raises(ConfigError, match=message):
                wrong()

    def test_json_holds_them(self) -> None:
        kinds = {**KINDS, "station": Label(np.int64(7)), "grid": Field(np.array([1, 3, 3]).tolist())}
        specification = json.loads(json.dumps(Contexts(kinds).specification))
        assert dict(Contexts.of(specification)) == kinds
        assert Contexts.of(specification).specification == Contexts(kinds).specification == specification

    def test_shapes_may_be_arrays(self) -> None:
        contexts = Contexts({"place": np.array([2]), "coarse": torch.tensor([1, 2, 2]), "grid": torch.Size((1, 3))})
        assert dict(contexts) == {"place": Vector(2), "coarse": Field((1, 2, 2)), "grid": Field((1, 3))}

    def test_what_is_packed_comes_back(self) -> None:
        contexts, values = Contexts(KINDS), {name: torch.as_tensor(value) for name, value in draw(6, 0).items()}
        packed = contexts.pack(values)
        assert packed.shape == (6, contexts.size) == (6, 1 + 2 + 4 + 3 + 4)
        for name, value in contexts.unpack(packed).items():
            torch.testing.assert_close(value, values[name].double(), equal_nan=True)
        assert contexts.unpack(packed[0])["season"].shape == ()

    def test_batches_broadcast(self) -> None:
        contexts = Contexts({"season": Label(4), "place": (2,)})
        packed = contexts.pack({"season": torch.tensor([[0], [1], [2]]), "place": torch.zeros(5, 2)})
        assert packed.shape == (3, 5, 3)
        with pytest.raises(ShapeError, match=r"contexts do not broadcast: season \[3\], place \[5\]"):
            contexts.pack({"season": torch.zeros(3), "place": torch.zeros(5, 2)})

    @pytest.mark.parametrize(
        ("kind", "known", "missing", "outside"),
        [
            (Label(4), [0, 3], [NAN], [4, -1, 1.5, torch.inf]),
            (Vector(2), [[0, 1e9]], [[NAN, 0], [0, torch.inf]], []),
            (Field((1, 2)), [[[1, 2]]], [[[1, NAN]]], []),
            (Tokens(2, vocabulary=5), [[0, 4], [4, -1], [NAN, 1], [-1] * 2], [[NAN] * 2], [[0, 5], [1.5, 0], [-2, 0]]),
            (Tokens(3, vocabulary=5), [[4, -1, 0], [4, NAN, 0]], [[NAN] * 3], [[4, -1, 5]]),
            (Tokens(2, features=2), [[[0, 1], [NAN, NAN]]], [[[NAN] * 2] * 2, [[0, 1], [NAN, 2]]], []),
        ],
        ids=["label", "vector", "field", "words", "words with a hole", "vectors"],
    )
    def test_missing_is_one_thing_and_outside_another(
        self, kind: Context, known: list[Any], missing: list[Any], outside: list[Any]
    ) -> None:
        contexts = Contexts({"it": kind})
        for values, is_known in ((known, True), (missing, False), (outside, False)):
            for value in values:
                packed = contexts.pack({"it": torch.tensor(value, dtype=torch.float32)})
                assert bool(contexts.known(packed)) is is_known, value
        for value in [*known, *missing]:
            contexts.require_allowed(contexts.pack({"it": torch.tensor(value, dtype=torch.float32)}))
        for value in outside:
            with pytest.raises(DataError, match=r"context 'it': there is no (class|token)"):
                contexts.require_allowed(contexts.pack({"it": torch.tensor(value)}))

    @pytest.mark.parametrize("shape", [KINDS, (2, 2), Vector(4)], ids=["mix", "field", "vector"])
    def test_infinite_is_not_missing(self, shape: Any) -> None:
        conditions = Conditions.of(shape)
        packed = torch.full((3, *conditions.shape), torch.nan)
        conditions.require_no_infinity(packed)
        packed[1].flatten()[2] = -torch.inf
        with pytest.raises(
            DataError, match=r"context '(place|context)': a number is infinite, or beyond the density's"
        ):
            conditions.require_no_infinity(packed)


class TestPreprocessing:
    def test_each_kind_in_its_own_way(self) -> None:
        contexts, values = Contexts(KINDS), draw(500, 0)
        packed = Conditions.of(KINDS).pack(values)
        each = context_preprocessing(KINDS).double().fit(packed)
        z, log_det = each(packed)
        parts = contexts.unpack(z)
        assert torch.equal(parts["season"], torch.as_tensor(values["season"]).double())
        assert torch.equal(parts["words"], torch.as_tensor(values["words"]))
        for name in ("place", "coarse"):
            assert parts[name].mean(0).abs().max() < 1e-6
            assert (parts[name].std(0) - 1).abs().max() < 0.01
        there = parts["reports"][~parts["reports"].isnan().all(-1)]
        assert there.mean(0).abs().max() < 1e-6
        assert (there.std(0) - 1).abs().max() < 0.01
        torch.testing.assert_close(each.inverse(z)[0], packed, equal_nan=True)
        torch.testing.assert_close(each.inverse(z)[1], -log_det)

    def test_the_log_det_is_that_of_the_jacobian(self) -> None:
        packed = Conditions.of(KINDS).pack(draw(100, 0))
        each = context_preprocessing(KINDS).double().fit(packed)
        row = packed[packed.isfinite().all(-1)][0]
        jacobian = torch.func.jacrev(lambda c: each(c)[0])(row)
        torch.testing.assert_close(each(row)[1], torch.linalg.slogdet(jacobian).logabsdet)

    def test_what_is_missing_stays_so_and_spoils_nothing(self) -> None:
        packed = Conditions.of(KINDS).pack(draw(300, 0))
        whole = context_preprocessing(KINDS).double().fit(packed)(packed)[0]
        holes = packed.clone()
        holes[::3] = torch.nan
        each = context_preprocessing(KINDS).double().fit(holes)
        assert torch.isnan(each(holes)[0][::3]).all()
        # Estimated from two thirds of the rows: near what all of them give.
        again = each(packed)[0]
        assert torch.equal(again.isnan(), whole.isnan())
        assert (again - whole).nan_to_num().abs().max() < 0.5
        nothing = context_preprocessing(KINDS).fit(torch.full((4, 14), torch.nan))
        assert not nothing.is_fitted

    def test_no_network_meets_a_label_that_there_is_not(self) -> None:
        contexts = Contexts({"season": Label(4), "words": Tokens(2, vocabulary=5)})
        rows = torch.tensor([[3.0, 4, -1], [4, 5, 0], [1.5, -2, 0]])
        expected = torch.tensor([[3.0, 4, -1], [NAN, NAN, 0], [NAN, NAN, 0]])
        torch.testing.assert_close(context_preprocessing(contexts)(rows)[0], expected, equal_nan=True)


class TestFeatures:
    def test_labels_are_one_hot_and_tokens_averaged(self) -> None:
        contexts = Contexts(KINDS)
        features = ContextFeatures(contexts)
        values = {
            "season": torch.tensor([2, 0]),
            "place": torch.tensor([0.5, -0.5]),
            "coarse": torch.arange(4.0).reshape(1, 2, 2),
            "words": torch.tensor([[1, 4, -1], [-1, -1, -1]]),
            "reports": torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [NAN, NAN]]]),
        }
        found = features(contexts.pack(values))
        assert found.shape == (2, num_context_features(contexts))
        words = features.words[3].weight
        first = torch.cat([torch.tensor([0, 0, 1, 0, 0.5, -0.5, 0, 1, 2, 3]), (words[1] + words[4]) / 2])
        torch.testing.assert_close(found[0], torch.cat([first, torch.tensor([2.0, 3.0])]))
        assert torch.equal(found[1, :4], torch.tensor([1.0, 0, 0, 0]))
        assert torch.equal(found[1, 10:-2], torch.zeros(words.shape[1]))
        assert torch.equal(found[1, -2:], torch.tensor([5.0, 6.0]))

    def test_what_is_not_given_is_nan_alone(self) -> None:
        contexts = Contexts(KINDS)
        packed = contexts.pack({name: torch.as_tensor(value[0]) for name, value in draw(1, 0).items()}).float()
        for name in KINDS:
            parts = contexts.unpack(packed)
            features = ContextFeatures(contexts)
            found = features(contexts.pack(parts | {name: torch.full_like(parts[name], torch.nan)})[None])
            assert found.isnan().sum() == num_context_features(Contexts({name: KINDS[name]}))

    def test_gradients_pass_by_what_fills_up(self) -> None:
        contexts = Contexts({"words": KINDS["words"], "reports": KINDS["reports"]})
        features = ContextFeatures(contexts)
        reports = torch.tensor([[1.0, 2.0], [NAN, NAN]], requires_grad=True)
        features(contexts.pack({"words": torch.tensor([1, -1, -1]), "reports": reports})[None]).sum().backward()
        assert torch.equal(reports.grad, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        rows = features.words[0].weight.grad
        assert torch.equal(rows.abs().sum(1) > 0, torch.tensor([False, True, False, False, False]))


class TestWhatUsersGive:
    def test_by_name_or_side_by_side(self) -> None:
        flow, x = small(MIX), torch.randn(5, 2)
        packed = flow.pack_context(some())
        assert packed.shape == flow.context_shape == (10,)
        assert packed.tolist() == [2, 0.5, 1, 1, 1, 1, 1, 1, 4, -1]
        expected = flow.log_prob(x, packed)
        assert torch.equal(flow.log_prob(x, some()), expected.detach())
        assert torch.equal(flow.log_prob(x, {name: torch.as_tensor(v) for name, v in some().items()}), expected)
        assert torch.equal(flow.log_prob(x, dict(reversed(some().items()))), expected.detach())
        assert torch.equal(flow.likelihood(x, some()).log_prob, expected.detach())
        z = flow.encode(x, some())
        torch.testing.assert_close(flow.decode(z, some()), x, rtol=0, atol=1e-4)

    def test_every_part_counts(self) -> None:
        flow, x = small(MIX), torch.zeros(2)
        for changed in ({"season": 1}, {"place": [0.5, 1.5]}, {"coarse": np.zeros((1, 2, 2))}, {"words": [1, 3, -1]}):
            assert (flow.log_prob(x, some(**changed)) - flow.log_prob(x, some())).abs() > 1e-4
        # Words are in no order.
        torch.testing.assert_close(flow.log_prob(x, some(words=[4, -1, 1])), flow.log_prob(x, some()))

    def test_parts_broadcast_with_each_other_and_over_rows(self) -> None:
        flow, x = small(MIX), torch.randn(4, 3, 2)
        seasons, places = torch.tensor([0, 1, 3]), torch.randn(4, 1, 2)
        together = flow.log_prob(x, some(season=seasons, place=places))
        assert together.shape == (4, 3)
        for i in range(4):
            for j in range(3):
                alone = flow.log_prob(x[i, j], some(season=seasons[j], place=places[i, 0]))
                torch.testing.assert_close(together[i, j], alone, rtol=0, atol=1e-5)
        with pytest.raises(ShapeError, match=r"context rows \[3\] do not broadcast over event rows \[5\]"):
            flow.log_prob(torch.zeros(5, 2), some(season=seasons))

    def test_draws_for_each_of_the_batch(self) -> None:
        flow = small(MIX)
        assert flow.sample(6, some()).shape == (6, 2)
        draws = flow.sample((500, 2), some(season=[0, 1, 3], place=np.random.default_rng(0).normal(size=(4, 1, 2))))
        assert draws.shape == (500, 2, 4, 3, 2)
        by_season = flow.sample(4000, some(season=[0, 3]), seed=0)
        for i, season in enumerate((0, 3)):
            alone = flow.sample(4000, some(season=season), seed=1)
            assert (by_season[:, i].mean(0) - alone.mean(0)).abs().max() < 0.15
        assert flow.sample(0, some(season=[0, 3])).shape == (0, 2, 2)
        assert flow.sample(3, some(season=np.zeros(0))).shape == (3, 0, 2)

    def test_gradients_reach_tensors(self) -> None:
        flow, place = small(MIX), torch.tensor([0.5, 1.0], requires_grad=True)
        flow.log_prob(torch.zeros(2), some(place=place)).backward()
        assert (place.grad != 0).all()
        assert not flow.log_prob(np.zeros(2), some()).requires_grad

    def test_a_bare_kind_is_given_as_it_is(self) -> None:
        x = torch.randn(5, 2)
        label = small(Label(4))
        expected = torch.stack([label.log_prob(x[i], i % 4) for i in range(5)])
        for labels in (torch.arange(5) % 4, (np.arange(5) % 4)[:, None], {"context": [0, 1, 2, 3, 0]}):
            torch.testing.assert_close(label.log_prob(x, labels), expected, rtol=0, atol=1e-5)
        assert label.sample(6, [0, 3]).shape == (6, 2, 2)
        assert label.sample(6, 3).shape == label.sample(6, [3]).shape == (6, 2)
        field, coarse = small(Field((1, 2, 2))), torch.randn(5, 1, 2, 2)
        assert torch.equal(field.log_prob(x, coarse), field.log_prob(x, coarse.flatten(1)))
        words = small(Tokens(3, vocabulary=5))
        assert words.log_prob(x, [0, 4, -1]).shape == (5,)

    def test_plain_shapes_are_what_they_were(self) -> None:
        vector, field = small((3,)), small((1, 2, 2))
        assert dict(vector.contexts) == {"context": Vector(3)}
        assert dict(field.contexts) == {"context": Field((1, 2, 2))}
        assert field.context_shape == (1, 2, 2)
        assert field.arguments["context_shape"] == [1, 2, 2]
        assert small(None).contexts is None
        assert "context_shape=(1, 2, 2)" in repr(field)
        x, context = torch.randn(5, 2), torch.randn(5, 3)
        assert torch.equal(vector.log_prob(x, {"context": context}), vector.log_prob(x, context))

    def test_tables_and_datasets_go_by_name(self) -> None:
        flow, x = small({"season": Label(4), "age": Vector(1)}), torch.randn(5, 2)
        ages, seasons = np.random.default_rng(0).normal(size=5), np.arange(5) % 4
        expected = flow.log_prob(x, {"season": seasons, "age": ages[:, None]})
        table = pd.DataFrame({"age": ages, "other": 1.0, "season": seasons})
        for columns in (table, xr.Dataset.from_dataframe(table)):
            assert torch.equal(flow.log_prob(x, columns), expected)
        mixed = small(MIX)
        values = draw(5, 0)
        dims = {"season": 1, "place": 2, "coarse": 4, "words": 2}
        arrays = {name: (["row", *(f"{name}_{i}" for i in range(n - 1))], values[name]) for name, n in dims.items()}
        del values["reports"]
        assert torch.equal(mixed.log_prob(x, xr.Dataset(arrays)), mixed.log_prob(x, values))

    def test_compiles_as_one_graph(self) -> None:
        torch._dynamo.reset()
        flow, x = small(MIX), torch.randn(4, 2)
        context = {name: torch.as_tensor(value) for name, value in some(season=[0, 1, 2, 3]).items()}
        compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, context), flow.log_prob(x, context))


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("context", "error", "message"),
        [
            (None, ShapeError, "conditional: give context by name: season, place, coarse, words"),
            ({"season": 2}, ShapeError, "context 'place' is missing: give season, place, coarse, words"),
            (some(seasn=2), ShapeError, "context 'seasn': not one of this density's; did you mean season"),
            (some(place=[1.0]), ShapeError, r"context 'place': shape \[\*batch, 2\] expected; got \[1\]"),
            (some(coarse=np.ones((2, 2))), ShapeError, r"context 'coarse': shape \[\*batch, 1, 2, 2\] expected"),
            (some(season=[0, 1], words=[[1, 2, 3]] * 3), ShapeError, "contexts do not broadcast: season"),
            (some(place="here"), DataError, "context 'place' are made of real numbers"),
            (some(season=7), DataError, "context 'season': there is no class 7: they are 0 to 3"),
            (some(season=[1, 1.5]), DataError, "context 'season': there is no class 1.5: they are 0 to 3"),
            (some(season=-1), DataError, "context 'season': there is no class -1"),
            (some(words=[1, 5, -1]), DataError, "context 'words': there is no token 5: they are 0 to 4, and -1"),
            (np.zeros(4), ShapeError, r"context of shape \[10\] expected \(season 1, place 2, .* names\), got \[4\]"),
        ],
    )
    def test_by_everything_that_takes_a_context(self, context: Any, error: type[Exception], message: str) -> None:
        flow, x = small(MIX), torch.zeros(2)
        for takes in (flow.log_prob, flow.likelihood, flow.encode, flow.decode):
            with pytest.raises(error, match=message):
                takes(x, context)
        with pytest.raises(error, match=message):
            flow.sample(3, context)
        if context is not None:
            with pytest.raises(error, match=message):
                flow.pack_context(context)

    def test_a_context_where_there_is_none(self) -> None:
        with pytest.raises(ShapeError, match="this density has no context"):
            small(None).log_prob(torch.zeros(2), {"season": 1})
        with pytest.raises(ShapeError, match="this density has no context"):
            small(None).pack_context(1)

    def test_what_is_missing_makes_log_p_unknown(self) -> None:
        flow, x = small(MIX), torch.zeros(2, 2)
        for name in MIX:
            values = some(season=[2.0, 2.0])
            values[name] = np.broadcast_to(values[name], (2, *Contexts(MIX)[name].shape)).astype(float)
            values[name][1] = np.nan
            record = flow.likelihood(x, values)
            assert record.status.tolist() == [Status.OK, Status.NON_FINITE], name
            assert record.log_prob.isnan().tolist() == [False, True]
            assert flow.encode(x, values).isnan().any(-1).tolist() == [False, True]

    def test_a_training_step_waits_for_no_check_but_leaves_no_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flow = small(MIX).train()
        # A GPU would be waited for.
        monkeypatch.setattr(Conditions, "require_allowed", lambda *_: pytest.fail("checked in a training step"))
        contexts = some(season=[0, 7, 2], words=[[1, 2, -1], [0, 0, 0], [0, 9, 0]])
        assert flow.loss(torch.zeros(3, 2), contexts).isnan().tolist() == [False, True, True]

    def test_more_classes_than_any_network_reads(self) -> None:
        with pytest.raises(ConfigError, match="NSF: context_shape must be such that networks read 1,048,576 numbers"):
            small({"one": Label(1 << 20), "other": Label(1 << 20)})


class TestFit:
    @pytest.mark.parametrize("names", [[name] for name in KINDS] + [list(KINDS)], ids="+".join)
    def test_the_mean_follows_every_context(self, names: list[str]) -> None:
        contexts = {name: draw(1500, 0)[name] for name in names}
        rng = np.random.default_rng(1)
        mean = sum(effect(name, contexts[name]) for name in names)
        x = np.stack((mean + 0.2 * rng.normal(size=1500), rng.normal(size=1500)), 1)
        kinds = {name: KINDS[name] for name in names}
        flow = MAF((2,), kinds, num_transforms=2, hidden_features=(32, 32), seed=0)
        before = flow.log_prob(x, contexts).mean()
        fit = sf.fit(
            flow, x, context=contexts, max_steps=200, batch_size=256, learning_rate=5e-3, seed=0, progress=False
        )
        assert flow.log_prob(x, contexts).mean() > before + 1
        new = {name: draw(50, 5)[name] for name in names}
        truth = sum(effect(name, new[name]) for name in names)
        draws = flow.sample(200, new, seed=0)
        error = draws.mean(0)[:, 0].numpy() - truth
        # Draws alone err by 0.2 / sqrt(200) = 0.014; a model that ignored one of the contexts, by 1 or so.
        assert np.sqrt(np.mean(error**2)) < 0.1 * len(names) ** 0.5
        # The entropy of the two normals is 1.23: what is learned is no better than the truth, nor much worse.
        assert -2.0 < fit.validation.mean < -1.23 + 4 * fit.validation.error

    def test_named_rows_are_packed_once_for_training_and_validation(self) -> None:
        x, contexts = np.random.default_rng(0).normal(size=(60, 2)), draw(60, 0)
        flow = small({name: KINDS[name] for name in contexts})
        assert sf.fit(flow, x, context=contexts, max_steps=3, progress=False).steps == 3
        held = {name: values[:20] for name, values in contexts.items()}
        fit = sf.fit(flow, x, x[:20], context=contexts, validation_context=held, max_steps=3, progress=False)
        assert fit.validation.count == 20
        bad = held | {"season": np.arange(20) * (np.arange(20) < 5)}
        with pytest.raises(DataError, match="validation rows 4: context 'season': there is no class 4"):
            sf.fit(flow, x, x[:20], context=contexts, validation_context=bad, max_steps=3, progress=False)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("season", 7, "rows 41: context 'season': there is no class 7: they are 0 to 3"),
            ("season", NAN, "rows 41: context not finite; drop or fill them first"),
            ("words", 5, "rows 41: context 'words': there is no token 5"),
            ("words", NAN, "rows 41: context not finite"),
            ("place", NAN, "context 'place': 1 of 60 rows have missing or infinite values, first at row 41"),
            ("reports", NAN, "rows 41: context not finite"),
        ],
    )
    def test_bad_rows_are_named_before_the_first_step(self, name: str, value: float, message: str) -> None:
        contexts = {key: values.astype(float) for key, values in draw(60, 0).items()}
        contexts[name][41] = value
        with pytest.raises(DataError, match=message):
            sf.fit(small(KINDS), np.zeros((60, 2)), context=contexts, progress=False)

    def test_columns_of_a_table_go_by_name_ever_after(self) -> None:
        rng = np.random.default_rng(0)
        x, places = rng.normal(size=(60, 2)), pd.DataFrame(rng.normal(size=(60, 2)), columns=["lat", "lon"])
        flow = small({"season": Label(4), "place": (2,)})
        seasons = np.arange(60) % 4
        sf.fit(flow, x, context={"season": seasons, "place": places}, max_steps=2, progress=False)
        turned = {"season": seasons, "place": places[["lon", "lat"]]}
        expected = flow.log_prob(x, {"season": seasons, "place": places.to_numpy()})
        assert torch.equal(flow.log_prob(x, turned), expected)
        whole = places.assign(season=seasons)[["season", "lat", "lon"]]
        sf.fit(flow, x, context=whole, max_steps=2, progress=False)
        assert flow.context_columns == ["season", "lat", "lon"]
        assert torch.equal(flow.log_prob(x, whole[["lon", "season", "lat"]]), flow.log_prob(x, whole.to_numpy()))

    def test_one_row_an_event(self) -> None:
        with pytest.raises(ShapeError, match=r"context of shape \[20, 10\] expected, one row an event; got \[10\]"):
            sf.fit(small(MIX), np.zeros((20, 2)), context=some(), progress=False)

    def test_scores_take_what_log_prob_takes(self) -> None:
        flow, x, contexts = small(KINDS), np.random.default_rng(0).normal(size=(30, 2)), draw(30, 0)
        expected = flow.log_prob(x, contexts).numpy()
        np.testing.assert_allclose(sf.score(flow, x, context=contexts, batch_size=7).log_prob, expected, rtol=1e-5)
        label = small(Label(4))
        scores = sf.score(label, x, context=contexts["season"], batch_size=7)
        np.testing.assert_allclose(scores.log_prob, label.log_prob(x, contexts["season"]), atol=1e-5)
        one = {name: values[3] for name, values in contexts.items()}
        np.testing.assert_allclose(sf.score(flow, x, context=one).log_prob, flow.log_prob(x, one), atol=1e-5)


class TestFilesAndStores:
    def test_saving_keeps_them(self, tmp_path: Path) -> None:
        flow = small(KINDS)
        contexts = draw(40, 0)
        x = torch.randn(40, 2)
        flow.fit_preprocessing(x, flow.pack_context(contexts))
        flow.context_columns = {"place": ["lat", "lon"]}
        again = sf.load(flow.save(tmp_path / "model"))
        assert dict(again.contexts) == KINDS
        assert again.context_columns == {"place": ["lat", "lon"]}
        assert torch.equal(again.log_prob(x, contexts), flow.log_prob(x, contexts))
        description = json.loads((tmp_path / "model" / "model.json").read_text())
        assert description["arguments"]["context_shape"]["coarse"] == {"field": {"sizes": [1, 2, 2]}}

    def test_models_of_plain_shapes_have_the_numbers_they_had(self, tmp_path: Path) -> None:
        flow = small((3,), num_transforms=1)
        path = flow.save(tmp_path / "model")
        description = json.loads((path / "model.json").read_text())
        assert description["arguments"]["context_shape"] == [3]
        names = {name for name in flow.state_dict() if not name.startswith("transform.")}
        assert names == {"preprocess.fitted", "preprocess.mean", "preprocess.std"} | {
            f"preprocess_context.{name}" for name in ("fitted", "knots", "first", "step", "std")
        }
        assert sf.load(path).context_shape == (3,)

    def test_a_workflow_says_what_the_numbers_are(self) -> None:
        model = {"name": "nsf", "num_transforms": 1, "context_shape": {"season": {"label": 4}, "coarse": [1, 2, 2]}}
        assert dict(build(model, (2,), (5,)).contexts) == {"season": Label(4), "coarse": Field((1, 2, 2))}
        tokens = {"words": {"tokens": {"length": 3, "vocabulary": 5}}}
        assert dict(build({"name": "nsf", "context_shape": tokens}, (2,), (3,)).contexts) == {"words": KINDS["words"]}
        assert build({"name": "nsf", "context_shape": [1, 2, 2]}, (2,), (4,)).context_shape == (4,)
        assert build({"name": "nsf", "context_shape": [4]}, (2,), (4,)).arguments["context_shape"] == [4]
        for shape, size in (((6,), "a context of 6 numbers"), (None, "no context")):
            with pytest.raises(ConfigError, match=rf"model.context_shape: the data have {size}, .* season 1, coarse 4"):
                build(model, (2,), shape)
        for key, value, message in (
            (
                "context_shape",
                {"season": {"lable": 4}},
                r"model\.context_shape: season: unknown 'lable'; did you mean label",
            ),
            ("context_shape", {"words": {"tokens": 3}}, r"model\.context_shape: words: Tokens: give vocabulary"),
            ("context_shape", [0], r"model\.context_shape must hold at least one dimension"),
            ("context_shap", {}, r"model\.context_shap: unknown key; did you mean context_shape"),
        ):
            with pytest.raises(ConfigError, match=message):
                build({"name": "nsf", key: value}, (2,), (1,))

    def test_a_stores_context_is_split(self, tmp_path: Path) -> None:
        store = sf.shard(_dataset(200), tmp_path / "store", **_QUIET)
        workflow = {
            "name": "split",
            "data": {"store": str(store.path)},
            "model": {"name": "nsf", "num_transforms": 1, "hidden_features": [8], "context_shape": _PARTS},
            "training": {"max_steps": 4, "batch_size": 32},
        }
        run = sf.train(workflow, runs=tmp_path / "runs", local=True, progress=False)
        flow = run.density
        assert dict(flow.contexts) == {"season": Label(4), "coarse": Field((1, 2))}
        rows, context = store.test[:5], store.test.context[:5]
        by_name = {"season": context[:, 0], "coarse": context[:, None, 1:]}
        assert torch.equal(flow.log_prob(rows, by_name), flow.log_prob(rows, context))
        scores = sf.score(flow, store, progress=False)
        assert np.isfinite(scores.log_prob).all()

    def test_a_stores_labels_are_looked_at_before_the_first_step(self, tmp_path: Path) -> None:
        dataset = _dataset(60)
        dataset["class"][:] = 7
        store = sf.shard(dataset, tmp_path / "store", **_QUIET)
        flow = small({"season": Label(4), "coarse": Field((1, 2))})
        with pytest.raises(DataError, match=r"store, train rows 0, 1, .*: context 'season': there is no class 7"):
            sf.fit(flow, store, progress=False)
        with pytest.raises(LayoutError, match=r"its context has shape \(3,\), the density is for \(1,\)"):
            sf.fit(small(Label(4)), store, progress=False)

    def test_a_label_met_on_the_way_names_its_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # As in a store that is larger than the sample that is looked at first.
        monkeypatch.setattr("sciflow.training.rows.SAMPLE_ROWS", 8)
        monkeypatch.setattr("sciflow.training.rows.SAMPLE_RANGES", 1)
        dataset = _dataset(200)
        store = sf.shard(dataset, tmp_path / "good", **_QUIET)
        last = len(store.train) - 1
        dataset["class"][store.train.grid_index(last, last + 1)] = 7
        store = sf.shard(dataset, tmp_path / "bad", **_QUIET)
        assert store.train.context[last : last + 1][0, 0] == 7
        with pytest.raises(TrainingError, match=rf"the loss of .* {last} is not finite"):
            sf.fit(small({"season": Label(4), "coarse": Field((1, 2))}), store, max_steps=20, progress=False)


_PARTS = {"season": {"label": 4}, "coarse": {"field": [1, 2]}}
_QUIET: dict[str, Any] = {"variables": ["x"], "event": {"k": None}, "context": ["class", "grid"], "progress": False}


def _dataset(n: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "x": (("row", "k"), rng.normal(size=(n, 2))),
            "class": ("row", rng.integers(0, 4, n).astype(float)),
            "grid": (("row", "k"), rng.normal(size=(n, 2))),
        }
    )
