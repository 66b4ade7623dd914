"""What of a row its score is due to, where it is known: bumps in smooth series and fields, and columns of tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from sciflow.anomaly.attribution import attribution
from sciflow.anomaly.boxes import Boxes
from sciflow.anomaly.edits import EDITS, edits, typical_rows
from sciflow.anomaly.scores import Ensemble, LocalOutlierFactor, Score, SubspaceDistance
from sciflow.anomaly.scores.normal_scores import from_normal_scores, normal_scores

NUM_NORMAL, NUM_NEW = 1500, 40


def series(n: int, seed: int = 0, size: int = 24) -> np.ndarray:
    """Windows of a smooth series: random walks that begin anywhere."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, size)).cumsum(1) + 3 * random.normal(size=(n, 1))


def fields(n: int, seed: int = 0, size: int = 8) -> np.ndarray:
    """Smooth fields: a plane and a few waves."""
    random = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    shapes = np.stack([np.ones_like(x), x, y, np.sin(2 * x), np.cos(2 * y), np.sin(2 * x * y)])
    return np.einsum("ns,syx->nyx", random.normal(size=(n, len(shapes))), shapes) + 0.05 * random.normal(
        size=(n, size, size)
    )


def table(n: int, seed: int = 0) -> np.ndarray:
    """Columns without an order: two clusters, in each of which columns go together in pairs; and a heavy tail."""
    random = np.random.default_rng(seed)
    cluster = random.integers(0, 2, (n, 1))
    causes = random.normal(size=(n, 4)) + 3 * cluster
    signs = np.where(cluster, 1, -1)
    columns = np.concatenate([causes, signs * causes + 0.3 * random.normal(size=(n, 4))], 1)
    columns[:, 3] = np.exp(columns[:, 3])
    return columns


def with_bumps(rows: np.ndarray, height: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a bump of 4 to 8 neighbours, or a patch of 3 x 3, and where it is."""
    random = np.random.default_rng(seed)
    inside = np.zeros(rows.shape, bool)
    for row in inside:
        lengths = [int(random.integers(4, 9))] if row.ndim == 1 else [3, 3]
        starts = [int(random.integers(0, size - length + 1)) for size, length in zip(row.shape, lengths, strict=True)]
        row[tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))] = True
    return rows + height * inside, inside


def with_values_of_others(rows: np.ndarray, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of which a column or two are another row's, of the other half of the rows by that column; and which."""
    random = np.random.default_rng(seed)
    new, changed = rows.copy(), np.zeros(rows.shape, bool)
    for row, which in zip(new, changed, strict=True):
        for column in random.choice(rows.shape[1], random.integers(1, 3), replace=False):
            values = np.sort(rows[:, column])
            row[column] = values[-3] if row[column] < np.median(values) else values[2]
            which[column] = True
    return new, changed


def quick_score(normal: np.ndarray) -> Score:
    return Ensemble([LocalOutlierFactor(), SubspaceDistance(0.5)]).fit(normal[: len(normal) // 2], reference=normal)


def explained(score: Score, new: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, float]:
    """Attributions, and the score that is usual."""
    usual = float(score(normal).median())
    rows = torch.as_tensor(new, dtype=torch.float32)
    typical = typical_rows(torch.as_tensor(normal, dtype=torch.float32))
    return attribution(score, rows, None, typical, usual).numpy(), usual


def share_inside(why: np.ndarray, inside: np.ndarray) -> float:
    return float(np.mean([row[which].sum() / row.sum() for row, which in zip(why, inside, strict=True)]))


def area(why: np.ndarray, inside: np.ndarray) -> float:
    """Mean probability that what was changed has more than what was not."""
    return float(np.mean([roc_auc_score(which.ravel(), row.ravel()) for row, which in zip(why, inside, strict=True)]))


def odd_alone(score: Score, new: np.ndarray, inside: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that would be flagged: higher than nine tenths of normal ones."""
    flagged = (score(new) > score(normal).quantile(0.9)).numpy()
    assert flagged.sum() >= 10
    return new[flagged], inside[flagged]


class TestWhatWasChangedHasIt:
    @pytest.mark.parametrize(("make", "height"), [(series, 12.0), (series, -9.0), (fields, 2.5)])
    def test_bumps_in_smooth_rows(self, make, height):
        normal = make(NUM_NORMAL)
        score = quick_score(normal)
        new, inside = odd_alone(score, *with_bumps(make(NUM_NEW, seed=9), height), normal)
        why, _ = explained(score, new, normal)
        assert share_inside(why, inside) > 0.75
        assert area(why, inside) > 0.9

    def test_columns_of_a_table(self):
        normal = table(NUM_NORMAL)
        score = quick_score(normal)
        new, inside = odd_alone(score, *with_values_of_others(table(NUM_NEW, seed=9)), normal)
        why, _ = explained(score, new, normal)
        assert share_inside(why, inside) > 0.85
        assert area(why, inside) > 0.95

    def test_what_goes_together_is_found_in_the_rows_and_not_in_the_order_of_elements(self):
        normal = series(NUM_NORMAL)
        score = quick_score(normal)
        new, inside = odd_alone(score, *with_bumps(series(NUM_NEW, seed=9), 12.0), normal)
        order = np.random.default_rng(2).permutation(normal.shape[1])
        shuffled, _ = explained(quick_score(normal[:, order]), new[:, order], normal[:, order])
        assert share_inside(shuffled, inside[:, order]) > 0.8

    def test_patches_of_fields_of_many_elements(self):
        normal = fields(400, size=24)
        score = LocalOutlierFactor().fit(normal)
        new = fields(10, seed=9, size=24)
        inside = np.zeros(new.shape, bool)
        inside[:, 6:12, 9:15] = True
        why, _ = explained(score, new + 2.5 * inside, normal)
        assert share_inside(why, inside) > 0.8


class TestTheSum:
    def test_is_what_the_score_is_above_usual(self):
        normal = series(NUM_NORMAL)
        score = quick_score(normal)
        new, _ = with_bumps(series(NUM_NEW, seed=9), 12.0)
        why, usual = explained(score, new, normal)
        rise = score(new).numpy() - usual
        total = why.sum(1)
        assert (total >= 0).all()
        assert (total <= rise.clip(0) + 1e-9).all()
        assert np.median(total / rise) > 0.95

    def test_is_nothing_of_usual_rows(self):
        normal = series(NUM_NORMAL)
        score = quick_score(normal)
        new = series(200, seed=9)
        why, usual = explained(score, new, normal)
        assert (why[score(new).numpy() <= usual] == 0).all()


class TestTheCost:
    def test_of_a_row_does_not_grow_with_its_elements(self, monkeypatch):
        normal = series(NUM_NORMAL)
        score = quick_score(normal)
        new, _ = odd_alone(score, *with_bumps(series(NUM_NEW, seed=9), 12.0), normal)
        asked = []
        ask = Ensemble.__call__

        def counted(self, x, context=None):
            asked.append(len(x))
            return ask(self, x, context)

        monkeypatch.setattr(Ensemble, "__call__", counted)
        typical = torch.as_tensor(normal, dtype=torch.float32)
        attribution(score, torch.as_tensor(new, dtype=torch.float32), None, typical, 0.7)
        assert sum(asked) <= 1.5 * len(new) * (EDITS + 1)
        assert 5 * new.shape[1] > EDITS + 1


class FarFrom(Score):
    """How far the second number is from one that is given, or from the context."""

    name = "far_from"
    needs = None

    def __init__(self, centre: float | None = None) -> None:
        super().__init__(centre=centre)

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size([3])

    def __call__(self, x, context=None):
        return self._scores(x, context).double()

    def _scores(self, x, context):
        return (x[:, 1] - (self.arguments["centre"] if context is None else context[:, 0])).abs()


class TestOfRowsThatAreLikeThoseNextToThem:
    @pytest.mark.parametrize(("score", "context"), [(FarFrom(1.0), None), (FarFrom(), torch.tensor([[1.0]]))])
    def test_it_is_how_far_the_score_falls_without_the_element(self, score, context):
        normal = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
        why = attribution(score, torch.tensor([[0.1, -1.0, 0.2]]), context, normal, 0.1)
        # The nearest of the five usual values that it is tried with is the nine tenths quantile.
        left = abs(1.0 - float(normal[:, 1].quantile(0.9)))
        torch.testing.assert_close(why, torch.tensor([[0.0, 2.0 - left, 0.0]]).double(), atol=0.02, rtol=0)


class TestEdits:
    def test_leave_what_they_do_not_change_as_it_is_and_grow(self):
        normal, (new, _) = series(NUM_NORMAL), with_bumps(series(5, seed=9), 12.0)
        x = torch.as_tensor(new)
        rows, sizes = edits(x, torch.as_tensor(normal))
        untouched = sizes == 0
        assert torch.equal(rows[untouched], x.expand_as(rows)[untouched])
        assert (sizes.abs().sum(2).diff(dim=0) > -1e-6).all()
        assert untouched[0].double().mean() > untouched[-1].double().mean()

    def test_take_a_bump_off(self):
        normal, clean = series(NUM_NORMAL), series(20, seed=9)
        new, inside = with_bumps(clean, 12.0)
        last = edits(torch.as_tensor(new), torch.as_tensor(normal)).rows[-1].numpy()
        assert np.abs(last - clean)[inside].mean() < 0.3 * 12.0
        assert np.abs(last - clean)[~inside].mean() < 0.1 * 12.0

    def test_are_of_the_row_alone(self):
        normal, (new, _) = torch.as_tensor(series(NUM_NORMAL)), with_bumps(series(5, seed=9), 12.0)
        together = edits(torch.as_tensor(new), normal).sizes
        alone = torch.cat([edits(torch.as_tensor(row)[None], normal).sizes for row in new], 1)
        torch.testing.assert_close(together, alone)

    def test_of_numbers_however_far_out_are_finite(self):
        normal = torch.as_tensor(series(NUM_NORMAL))
        rows = torch.zeros(2, 24, dtype=torch.float64)
        rows[0, 3], rows[1] = 1e30, -3e38
        found = edits(rows, normal)
        assert found.rows.isfinite().all()
        assert found.sizes.isfinite().all()
        assert int(found.sizes[-1, 0].abs().argmax()) == 3

    @pytest.mark.parametrize("num_normal", [2, 5])
    def test_few_normal_rows_will_do(self, num_normal):
        assert edits(torch.zeros(3, 4), torch.randn(num_normal, 4)).rows.isfinite().all()

    def test_of_no_rows_are_none(self):
        assert edits(torch.zeros(0, 4), torch.randn(50, 4)).rows.shape == (EDITS, 0, 4)


class TestNormalScores:
    def test_are_normal_whatever_the_numbers_are(self):
        numbers = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8
        scores = normal_scores(numbers, numbers.sort(0).values)
        torch.testing.assert_close(scores.mean(0), torch.zeros(2).double(), atol=0.01, rtol=0)
        torch.testing.assert_close(scores.std(0), torch.ones(2).double(), atol=0.02, rtol=0)

    def test_go_back_to_the_numbers(self):
        ordered = (
            torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp().sort(0).values
        )
        inner = ordered[1:-1]
        torch.testing.assert_close(from_normal_scores(normal_scores(inner, ordered), ordered), inner)


class TestBoxes:
    @pytest.mark.parametrize("shape", [(5,), (16, 16), (300,), (64, 48), (3, 40, 40)])
    def test_each_element_is_in_one_of_256_at_most(self, shape):
        boxes = Boxes.of(torch.Size(shape))
        assert boxes.number.unique().tolist() == list(range(boxes.count))
        assert boxes.count <= 256

    def test_means_are_those_of_the_elements(self):
        x = torch.randn(3, 32, 32)
        means = Boxes.of(torch.Size([32, 32])).means(x)
        torch.testing.assert_close(means.reshape(3, 16, 16), torch.nn.functional.avg_pool2d(x, 2).double())
