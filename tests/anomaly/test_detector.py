"""The detector: three steps, on what users have, and what it says when something is wrong."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sciflow as sf
from sciflow.anomaly.scores import Ensemble, LocalOutlierFactor, NegativeLogProb, SubspaceDistance
from sciflow.errors import ConfigError, DataError, LayoutError, ModelFileError, SciflowError, ShapeError

QUICK = {"max_steps": 60}


def rows(n: int = 1000, num_features: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, num_features))


@pytest.fixture(scope="module")
def detector() -> sf.Detector:
    return sf.Detector(score="nll", training=QUICK).fit(rows(2000), progress=False)


@pytest.fixture(scope="module")
def odd() -> np.ndarray:
    """Rows, of which the last two are odd: in all of their numbers, and in the third one."""
    return np.vstack([rows(48, seed=11), [[9.0, 9.0, 9.0], [0.0, 0.0, 12.0]]])


def daily(n: int = 800, num_places: int = 4, seed: int = 0) -> xr.DataArray:
    time = pd.date_range("2019-01-01", periods=n, freq="D")
    values = rows(n, num_places, seed).astype(np.float32)
    return xr.DataArray(values, {"time": time, "place": [1.0, 2.0, 3.0, 4.0]}, ("time", "place"), name="t2m")


def quick() -> sf.Detector:
    """A detector that trains nothing."""
    return sf.Detector(Ensemble([LocalOutlierFactor(), SubspaceDistance(2)]))


class TestTheThreeSteps:
    def test_odd_rows_are_flagged_and_others_are_not(self, detector, odd):
        found = detector.predict(odd, fdr=0.1)
        assert found.flag.tolist() == [False] * 48 + [True] * 2
        assert found.p_value.shape == found.score.shape == (50,)
        assert repr(found).startswith("2 of 50 events flagged at FDR 0.1 (p <= 0.0025); calibration 400 rows")

    def test_p_values_are_those_of_held_out_rows(self, detector, odd):
        found, calibration = detector.predict(odd), detector.calibration.scores
        as_high = (calibration >= found.score[:, None]).sum(1)
        np.testing.assert_allclose(found.p_value, (as_high + 1) / (len(calibration) + 1))

    def test_p_values_of_new_normal_rows_are_uniform(self, detector):
        p_value = detector.predict(rows(4000, seed=2)).p_value
        for level in (0.05, 0.2, 0.5, 0.9):
            # Of one calibration of 400 rows and 4,000 new ones.
            error = np.sqrt(level * (1 - level) * (1 / 400 + 1 / 4000))
            assert abs((p_value <= level).mean() - level) < 4 * error

    def test_the_score_does_not_depend_on_the_other_rows(self, detector, odd):
        alone = np.concatenate([detector.score(row[None]) for row in odd])
        np.testing.assert_allclose(detector.score(odd), alone, rtol=1e-5)

    def test_decision_function_is_the_score_as_pyod_has_it(self, detector, odd):
        assert isinstance(detector.decision_function(torch.from_numpy(odd)), np.ndarray)
        np.testing.assert_array_equal(detector.decision_function(odd), detector.score(odd))

    def test_a_false_alarm_rate_in_place_of_a_false_discovery_rate(self, detector):
        found = detector.predict(rows(2000, seed=3), false_alarm_rate=0.05)
        np.testing.assert_array_equal(found.flag, found.p_value <= 0.05)
        assert "a false-alarm rate of 0.05" in repr(found)

    def test_calibration_on_rows_of_ones_own(self, odd):
        detector = sf.Detector(score="nll", training=QUICK).fit(rows(), progress=False)
        detector.calibrate(rows(999, seed=4))
        assert detector.calibration.rows == 999
        assert detector.predict(odd).p_value.min() == pytest.approx(1 / 1000)

    def test_the_same_seed_gives_the_same_detector(self, odd):
        first, second = (sf.Detector(score="nll", seed=3, training=QUICK).fit(rows(300), progress=False) for _ in "ab")
        np.testing.assert_array_equal(first.score(odd), second.score(odd))

    def test_says_how_many_rows_it_would_need(self, detector):
        found = detector.predict(rows(100, seed=5))
        assert "calibrate on 999 rows" in repr(found)

    def test_a_tail_goes_beyond_what_calibration_resolves_and_says_so(self, odd):
        detector = sf.Detector(score="nll", tail=True, training=QUICK).fit(rows(5000), progress=False)
        found = detector.predict(odd)
        assert found.extrapolated[-2:].all()
        assert (found.p_value[-2:] < detector.calibration.resolution()).all()
        assert "2 of them by a fitted tail" in repr(found)


class TestWhatItTakes:
    def test_torch_gives_torch(self, detector, odd):
        found = detector.predict(torch.from_numpy(odd))
        assert all(
            isinstance(part, torch.Tensor) for part in (found.score, found.p_value, found.flag, found.attribution)
        )

    def test_a_table_gives_its_index_and_its_columns(self, odd):
        table = pd.DataFrame(rows(2000), columns=["u", "v", "t"])
        detector = sf.Detector(score="nll", training=QUICK).fit(table, progress=False)
        new = pd.DataFrame(odd, columns=["u", "v", "t"], index=[f"row {k}" for k in range(len(odd))])
        found = detector.predict(new[["t", "u", "v"]])
        assert found.flag[found.flag].index.tolist() == ["row 48", "row 49"]
        assert list(found.attribution.columns) == ["u", "v", "t"]
        assert found.attribution.loc["row 49"].idxmax() == "t"

    def test_labelled_data_give_their_labels(self):
        detector = sf.Detector(score="nll", training=QUICK).fit(daily(2000), progress=False)
        new = daily(30, seed=1).assign_coords(time=pd.date_range("2022-01-01", periods=30, freq="D"))
        new[7, 2] = 15.0
        found = detector.predict(new)
        assert found.flag.dims == ("time",)
        assert found.flag.time[found.flag].values.tolist() == new.time[7:8].values.tolist()
        assert found.attribution.dims == ("time", "place")
        assert int(found.attribution[7].values.argmax()) == 2
        assert found.attribution[0].isnull().all()
        whole = found.to_dataset()
        assert set(whole) == {"score", "p_value", "flag", "extrapolated", "attribution"}
        assert whole.attrs["rule"] == "FDR 0.1"

    def test_a_store_is_trained_on_by_its_splits_and_calibrated_by_its_test_events(self, tmp_path):
        store = sf.shard(daily(), tmp_path / "days.zarr", split=(0.6, 0.2, 0.2), progress=False)
        detector = sf.Detector(score="nll", training=QUICK).fit(store, progress=False)
        assert detector.calibration.rows == len(store.test)
        found = detector.predict(str(tmp_path / "days.zarr"))
        assert found.score.dims == ("time",)
        by_hand = sf.score(detector.fitted_score.densities[0], store, progress=False).log_prob
        np.testing.assert_allclose(found.score.values, -by_hand.values, rtol=1e-5)

    def test_a_density_of_named_contexts_is_given_them_by_name(self):
        season, place = np.arange(300) % 4, rows(300, 2)
        shape = {"season": sf.contexts.Label(4), "place": (2,)}
        flow = sf.flows.NSF((3,), context_shape=shape, num_transforms=1)
        given = {"season": season, "place": place}
        detector = sf.Detector("nll", density=flow, training={"max_steps": 20}).fit(rows(300), given, progress=False)
        assert np.isfinite(detector.predict(rows(5, seed=1), {"season": 2, "place": place[0]}).score).all()
        unknown = detector.predict(rows(2), {"season": [1, 1], "place": [[0.0, 0.0], [np.nan, 0.0]]}).score
        assert np.isnan(unknown).tolist() == [False, True]

    @pytest.mark.parametrize("length", [1, 299, 301])
    def test_contexts_that_are_not_one_a_row(self, length):
        with pytest.raises(ShapeError, match="one a row"):
            sf.Detector("nll").fit(rows(300), rows(length, 1), progress=False)
        with pytest.raises(ShapeError, match="one a row"):
            sf.Detector("nll").fit(rows(300), rows(300, 1)[:, 0], progress=False)

    def test_members_of_an_ensemble_have_the_context(self):
        x, context = rows(600, 2), rows(600, 1, seed=1)
        detector = sf.Detector(["nll", "latent_norm"], training=QUICK).fit(3 * context + x, context, progress=False)
        score = detector.score(np.array([[6.0, 6.0], [6.0, 6.0]]), np.array([[2.0], [-2.0]]))
        assert score[1] > score[0]

    def test_a_context_beside_labelled_data_is_not_passed_over(self):
        with pytest.raises(ShapeError, match="in an array"):
            sf.Detector("nll").fit(daily(), rows(800, 1), progress=False)

    def test_torch_with_gradients_and_in_half_precision(self):
        x = torch.from_numpy(rows(100)).requires_grad_()
        for given in (x, x.to(torch.bfloat16)):
            assert torch.isfinite(quick().fit(given, progress=False).score(given)).all()

    def test_rows_given_something_else(self):
        x = rows(2000, 1)
        context = rows(2000, 1, seed=1)
        detector = sf.Detector(score="nll", training={"max_steps": 300}).fit(
            3 * context + 0.1 * x, context, progress=False
        )
        new = np.array([[3.0], [3.0]])
        found = detector.predict(new, np.array([[1.0], [-1.0]]))
        assert found.flag.tolist() == [False, True]
        assert detector.score(new, np.array([1.0])).shape == (2,)

    def test_a_density_that_is_trained_already_stays_as_it_is(self, odd):
        flow = sf.flows.NSF((3,), num_transforms=1, seed=0)
        sf.fit(flow, rows(), max_steps=60, progress=False)
        before = flow.log_prob(odd)
        for wanted in (flow, NegativeLogProb(flow)):
            detector = sf.Detector(wanted).fit(rows(seed=7), progress=False)
            np.testing.assert_allclose(detector.score(odd), -before.double().numpy())
        named = sf.Detector("nll", density=flow).fit(rows(seed=7), progress=False)
        np.testing.assert_allclose(named.score(odd), -before.double().numpy())

    def test_names_stand_on_the_family_that_is_asked_for(self):
        detector = sf.Detector("nll", density={"name": "maf", "num_transforms": 2}, training=QUICK)
        detector.fit(rows(300), progress=False)
        assert repr(detector.fitted_score.densities[0]).startswith("MAF")

    def test_rows_without_a_value_have_no_p_value_and_are_not_flagged(self, detector, odd):
        odd = odd.copy()
        odd[3] = np.nan
        found = detector.predict(odd)
        assert np.isnan(found.p_value[3])
        assert not found.flag[3]
        assert "1 without a p-value: missing or infinite values (1)" in repr(found)

    def test_what_it_finds_becomes_events_and_a_page(self, detector, odd, tmp_path):
        found = detector.predict(odd)
        events = sf.anomaly.merge_events(found)
        pd.testing.assert_frame_equal(events, sf.anomaly.merge_events(found.to_dataset()))
        assert len(events) == 2
        page = sf.anomaly.write_detection_page(tmp_path / "page.html", found, events)
        assert "2 events, 2 of 50 rows flagged" in page.read_text(encoding="utf-8")

    def test_rows_that_were_trained_on_are_told_of(self, detector, odd):
        assert detector.predict(odd).trained_on == 0
        found = detector.predict(rows(2000))
        assert found.trained_on == pytest.approx(0.7)
        assert "70% of the rows were trained on, and score low for it" in repr(found)

    def test_where_a_tail_is_fitted_no_resolution_is_in_the_way(self):
        detector = sf.Detector("diffusion_time", tail=True).fit(rows(3000), progress=False)
        assert "cannot be flagged" not in repr(detector.predict(rows(1000, seed=9), fdr=0.001))
        few = sf.Detector("diffusion_time", tail=True).fit(rows(1000), progress=False)
        assert "cannot be flagged" in repr(few.predict(rows(1000, seed=9), fdr=0.001))

    @pytest.mark.parametrize("as_given", [np.asarray, torch.tensor])
    def test_a_finite_number_beyond_single_precision_is_far_out_and_not_missing(self, as_given, detector, odd):
        for one in (detector, quick().fit(rows(100), progress=False)):
            new = odd.copy()
            new[3, 1], new[4, 1] = 1e300, np.inf
            score = np.asarray(one.score(as_given(new)))
            assert score[3] > 10 * score[:3].max()
            assert np.isnan(score[4])
            assert np.asarray(one.predict(as_given(new), false_alarm_rate=0.1).flag)[3:5].tolist() == [True, False]

    @pytest.mark.parametrize("dtype", [">f8", ">f4", np.longdouble, np.float16, ">i2", np.uint8, bool, object])
    def test_numbers_of_any_type_and_order_of_bytes(self, dtype):
        values = (10 * np.abs(rows(200))).astype(dtype)
        if dtype is bool:
            values = rows(200) > 0
        detector = quick().fit(values, progress=False)
        np.testing.assert_array_equal(detector.score(values), detector.score(values.astype(np.float32)))

    def test_copies_of_a_row_have_one_p_value_however_many_are_scored_at_a_time(self):
        values = (np.random.default_rng(0).random((1500, 5)) < [0.5, 0.3, 0.1, 0.1, 0.2]).astype(float)
        new = values[:60]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that come again and again
            detector = sf.Detector("nll", training=QUICK).fit(values, progress=False)
        together = detector.predict(new)
        alone = np.concatenate([detector.predict(row[None]).p_value for row in new])
        np.testing.assert_array_equal(together.p_value, alone)
        # As many as are as high but for rounding: no distinct rows have scores as near as this.
        as_high = (detector.calibration.scores.round(3) >= together.score[:, None].round(3)).sum(1)
        np.testing.assert_allclose(together.p_value, (as_high + 1) / 301)

    def test_no_rows_are_no_anomalies(self, detector):
        assert repr(detector.predict(rows(0))).startswith("0 of 0 events flagged")


class TestGroupsAndBlocks:
    def test_every_season_is_calibrated_by_itself(self):
        data = daily(1500)
        data[data.time.dt.season == "JJA"] *= 5
        detector = sf.Detector("nll", group="season", training=QUICK).fit(data, progress=False)
        assert detector.calibration.groups == ["DJF", "JJA", "MAM", "SON"]
        new = daily(1500, seed=1)
        new[new.time.dt.season == "JJA"] *= 5
        p_value = detector.predict(new).p_value
        for season in ("DJF", "JJA"):
            assert 0.02 < float((p_value[p_value.time.dt.season == season] <= 0.1).mean()) < 0.2

    def test_groups_of_arrays_are_given(self, odd):
        groups = np.arange(1000) % 2
        detector = sf.Detector("nll", training=QUICK).fit(rows(), groups=groups, progress=False)
        assert detector.calibration.groups == [0, 1]
        found = detector.predict(odd, groups=[0] * 49 + [7])
        assert np.isnan(found.p_value[-1])
        assert "groups that the calibration has not seen, 7 (1)" in repr(found)

    def test_several_times_do_no_harm_while_they_agree(self):
        data = daily(800)
        valid = data.assign_coords(valid_time=data.time + np.timedelta64(6, "h"))
        season, hour = (sf.Detector("diffusion_time", group=group) for group in ("season", "hour"))
        assert season.fit(valid, progress=False).calibration.groups == ["DJF", "JJA", "MAM", "SON"]
        with pytest.raises(DataError, match=r"'hour': the times of the rows \(time, valid_time\) do not agree"):
            hour.fit(valid, progress=False)

    def test_blocks_are_held_out_whole(self):
        detector = sf.Detector("nll", block=10, training=QUICK).fit(daily(), progress=False)
        assert detector.calibration.kind == "blocks"
        assert detector.calibration.resolution() == pytest.approx(1 / 17)

    @pytest.mark.parametrize(
        ("group", "message"), [("seson", "did you mean season"), ("hour", None), ("place", "known|did you mean")]
    )
    def test_a_group_is_one_that_there_is(self, group, message):
        detector = sf.Detector("nll", group=group, training=QUICK)
        if message is None:
            with pytest.raises(DataError, match="no time"):
                detector.fit(rows(100), progress=False)
        else:
            with pytest.raises(DataError, match=message):
                detector.fit(daily(200), progress=False)


@pytest.mark.gpu
@pytest.mark.parametrize("score", [None, "nll", {"denoising_error": {"num_draws": 2}}], ids=str)
def test_on_a_gpu_it_says_what_it_says_on_a_processor(score, odd, tmp_path):
    there = sf.Detector(score, training=QUICK).fit(rows(500), progress=False).save(tmp_path / "detector")
    here, elsewhere = (sf.Detector.load(there, device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(elsewhere.score(odd), here.score(odd), rtol=1e-3)
    np.testing.assert_allclose(elsewhere.explain(odd[-2:]), here.explain(odd[-2:]), rtol=0.05, atol=0.05)


class TestOfFewRows:
    """Too few to hold some out: each is scored by all others."""

    def test_all_of_them_calibrate(self):
        detector = sf.Detector().fit(rows(40), progress=False)
        assert detector.calibration.rows == 40
        assert detector.calibration.resolution() == pytest.approx(1 / 41)
        found = detector.predict(np.vstack([rows(5, seed=1), [[9.0, 9.0, 9.0]]]), false_alarm_rate=0.03)
        assert found.flag[5]

    def test_nothing_depends_on_a_draw(self):
        new = rows(50, seed=3)
        first, second = (sf.Detector(seed=seed).fit(rows(30), progress=False).predict(new) for seed in (0, 1))
        np.testing.assert_array_equal(first.p_value, second.p_value)

    @pytest.mark.parametrize("score", [None, "mean_distance", "local_outlier_factor"])
    @pytest.mark.parametrize("n", [12, 40])
    def test_p_values_of_normal_rows_are_at_least_uniform(self, n, score):
        p = [
            sf.Detector(score).fit(rows(n, seed=seed), progress=False).predict(rows(100, seed=1000 + seed)).p_value
            for seed in range(60)
        ]
        for level in (0.1, 0.3):
            share = np.mean(np.array(p) <= level, axis=1)
            assert share.mean() <= level + 3 * share.std() / np.sqrt(60)

    def test_blocks_are_left_out_as_a_whole(self):
        # Each row has a copy next to it, by which it would be no distance from the others.
        twice = np.repeat(rows(20), 2, 0)
        by_row = sf.Detector({"diffusion_time": {"num_neighbours": 1}}).fit(twice, progress=False)
        by_block = sf.Detector({"diffusion_time": {"num_neighbours": 1}}, block=2).fit(twice, progress=False)
        assert (by_row.calibration.scores == 0).all()
        assert (by_block.calibration.scores > 0).all()


class TestWhy:
    def test_what_elements_add_is_what_the_score_is_above_that_of_the_nearest_typical_row(self, detector, odd):
        found = detector.predict(odd).attribution
        assert np.isnan(found[:48]).all()
        assert found[49].argmax() == 2
        assert found[49, 2] > 10 * found[49, :2].max()
        rise = detector.score(odd[-2:]) - detector.score(detector.nearest_typical(odd[-2:]))
        np.testing.assert_allclose(found[-2:].sum(1), rise, rtol=0.02)

    def test_of_a_score_without_a_gradient_the_odd_element_has_it(self, odd):
        found = sf.Detector("diffusion_time").fit(rows(2000), progress=False).explain(odd[-2:])
        assert (found >= 0).all()
        assert found[1].argmax() == 2
        assert found[1, 2] > 10 * found[1, :2].max()

    @pytest.mark.parametrize(("n", "shape"), [(1000, (5,)), (1000, (2, 3)), (50, (5,)), (50, (2, 3))])
    def test_a_number_that_never_varied_and_now_does_is_found_and_named(self, n, shape):
        normal = rows(n + 10, int(np.prod(shape))).reshape(-1, *shape).astype(np.float32)
        normal[..., -1] = 273.15
        detector = sf.Detector(training={"max_steps": 20}).fit(normal[:n], progress=False)
        new = normal[n:].copy()
        new[4, ..., -1].flat[0] += 0.01
        found = detector.predict(new)
        assert found.score.argmax() == 4
        assert found.p_value[4] == pytest.approx(1 / (detector.calibration.rows + 1))
        why = detector.explain(new[[4]])[0]
        assert why[..., -1].flat[0] == why.max() > 0.5 * why.sum()
        assert (why[..., -1].flat[1:] == 0).all()

    def test_of_a_bump_in_a_smooth_series_the_bump_has_it(self):
        random = np.random.default_rng(0)
        steps = random.normal(size=(3000, 12)).cumsum(1)
        series = steps + 3 * random.normal(size=(3000, 1))
        detector = sf.Detector("nll", training={"max_steps": 400}).fit(series, progress=False)
        new = series[:1].copy()
        new[0, 4:8] += 12.0
        why = detector.explain(new)[0]
        assert why[4:8].sum() > 0.8 * why.sum()

    def test_numbers_that_contradict_each_other_both_have_it(self):
        x = rows(3000, 3)
        x[:, 1] = x[:, 0] + 0.05 * x[:, 1]
        detector = sf.Detector("nll", training={"max_steps": 400}).fit(x, progress=False)
        why = detector.explain(np.array([[1.5, -1.5, 0.0]]))[0]
        assert why[:2].min() > 5 * why[2]

    def test_is_of_the_row_and_its_context_alone(self):
        x, context = rows(600, 2), rows(600, 1, seed=1)
        detector = sf.Detector("nll", training=QUICK).fit(3 * context + x, context, progress=False)
        new, theirs = np.array([[9.0, 0.0], [0.0, 0.0], [-9.0, 3.0]]), np.array([[0.0], [1.0], [-3.0]])
        alone = [detector.explain(new[[i]], theirs[[i]])[0] for i in range(3)]
        np.testing.assert_allclose(detector.explain(new, theirs), alone, rtol=1e-3, atol=1e-3)

    def test_the_nearest_typical_row_is_near_and_typical(self, detector, odd):
        edited = detector.nearest_typical(odd[-2:])
        usual = np.median(detector.score(rows(2000)))
        assert (detector.score(edited) <= usual + 0.3).all()
        # On the way to the middle, and no further than it must.
        assert np.linalg.norm(odd[-2:] - edited, axis=1).max() < np.linalg.norm(odd[-2:], axis=1).max()
        assert (detector.score((edited + odd[-2:]) / 2) > usual).all()
        usual = odd[np.argsort(detector.score(odd))[:3]]
        np.testing.assert_array_equal(detector.nearest_typical(usual), usual.astype(np.float32))

    def test_tables_are_explained_by_the_names_of_their_columns(self):
        table = pd.DataFrame(rows(1000), columns=["a", "b", "c"])
        new = pd.DataFrame([[0.0, 0.0, 12.0]], columns=["a", "b", "c"], index=["monday"])
        detector = sf.Detector("nll", training=QUICK).fit(table, progress=False)
        for of_row in (detector.explain, detector.nearest_typical):
            found, turned = of_row(new), of_row(new[["c", "a", "b"]])
            assert list(found.columns) == ["a", "b", "c"]
            assert list(found.index) == ["monday"]
            pd.testing.assert_frame_equal(found, turned)
        assert detector.explain(new).loc["monday"].idxmax() == "c"

    def test_a_typical_row_is_found_where_the_middle_of_the_noise_is_none(self):
        ring = rows(2000, 2)
        ring /= np.linalg.norm(ring, axis=1, keepdims=True)
        flow = sf.flows.NSF((2,), num_transforms=1)
        sf.fit(flow, ring, max_steps=5, progress=False)
        detector = sf.Detector(Ensemble([NegativeLogProb(flow), LocalOutlierFactor()])).fit(ring, progress=False)
        found = detector.nearest_typical(np.array([[9.0, 0.0], [0.0, 9.0]]))
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=0.2)

    def test_a_score_without_a_density_has_typical_rows_too(self):
        x = rows(1000, 5)
        x[:, 1:] = x[:, :1] + 0.1 * x[:, 1:]
        detector = sf.Detector("diffusion_time").fit(x, progress=False)
        row = np.array([[1.0, 1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
        found = detector.nearest_typical(row)
        # The five agree again, as those of normal rows do.
        assert np.ptp(found[0]) < 0.4 < found[0].mean()
        assert (detector.score(found) <= np.median(detector.calibration.scores) + 0.1).all()
        np.testing.assert_array_equal(found[1], row[1])

    def test_where_none_is_found_a_warning_says_so(self):
        context, x = rows(300, 1), rows(300, 2, seed=1)
        detector = sf.Detector("nll", training=QUICK).fit(context + x, context, progress=False)
        detector._fitted = replace(detector._fitted, usual=-1e9)
        with pytest.warns(UserWarning, match="2 of 2 rows have no nearest typical row"):
            assert np.isnan(detector.nearest_typical(rows(2, 2), rows(2, 1))).all()

    def test_rows_without_a_score_have_no_reasons(self, detector, odd):
        odd = odd.copy()
        odd[-1, 0] = np.nan
        for one in (detector, quick().fit(rows(100), progress=False)):
            why = one.explain(odd[-2:])
            assert np.isfinite(why[0]).all()
            assert np.isnan(why[1]).all()

    @pytest.mark.parametrize("score", ["nll", "mean_distance"])
    def test_columns_and_dimensions_go_by_name(self, score):
        table = pd.DataFrame(rows(100), columns=list("abc"))
        detector = sf.Detector(score, training=QUICK).fit(table, progress=False)
        why = detector.explain(table[:5])
        np.testing.assert_array_equal(detector.explain(table[["c", "a", "b"]][:5]), why)
        np.testing.assert_array_equal(detector.explain(table.to_numpy()[:5]), why)
        detector = sf.Detector(score, training=QUICK).fit(daily(100), progress=False)
        why = detector.explain(daily(5))
        np.testing.assert_array_equal(detector.explain(daily(5).T), why)
        if score == "nll":
            np.testing.assert_array_equal(detector.nearest_typical(daily(5).T), detector.nearest_typical(daily(5)))

    def test_of_a_row_that_a_denoiser_has_no_answer_for_the_far_element_has_it(self, tmp_path):
        detector = sf.Detector("denoising_error", training={"max_steps": 20}).fit(rows(200), progress=False)
        why = detector.explain(np.array([[0.0, 3e38, 0.0]]))[0]
        assert why.argmax() == 1
        assert why[1] > 0


class TestWhereTheNumbersOfAnEventStand:
    """An event that is flipped has the shape of one that is not."""

    @pytest.mark.parametrize("places", [[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 5.0]])
    @pytest.mark.parametrize("ask", ["score", "predict", "explain", "calibrate", "decision_function"])
    def test_is_compared(self, ask, places, tmp_path):
        fitted = quick().fit(daily(100), progress=False)
        new = daily(30, seed=1).assign_coords(place=places)
        for detector in (fitted, sf.Detector.load(fitted.save(tmp_path / "detector"))):
            with pytest.raises(
                LayoutError, match=r"coordinate 'place' of an event is .* here, and 1, 2, 3, ... 4 there"
            ):
                getattr(detector, ask)(new)

    def test_may_be_left_out_rounded_or_put_in_order(self):
        fitted = quick().fit(daily(100), progress=False)
        new = daily(30, seed=1)
        score = fitted.score(new).values
        for other in (
            new.drop_vars("place"),
            new.assign_coords(place=np.float32([1, 2, 3, 4]) + np.float32(1e-3)),
            new.isel(place=[3, 1, 0, 2]).sortby("place"),
        ):
            np.testing.assert_array_equal(fitted.score(other).values, score)

    def test_is_compared_of_a_store_too(self, tmp_path):
        sf.shard(daily(100), tmp_path / "days.zarr", progress=False)
        detector = quick().fit(tmp_path / "days.zarr", progress=False)
        with pytest.raises(LayoutError, match="'place' of an event"):
            detector.predict(daily(5).assign_coords(place=[4.0, 3.0, 2.0, 1.0]))
        sf.shard(daily(100).isel(place=[3, 2, 1, 0]), tmp_path / "flipped.zarr", progress=False)
        with pytest.raises(LayoutError, match="'place' of an event"):
            detector.predict(tmp_path / "flipped.zarr")


class TestDrift:
    def test_one_odd_row_is_no_drift_and_a_shift_of_all_is(self, detector, odd):
        assert detector.drift(detector.predict(odd)).verdict == "odd"
        assert detector.drift(detector.predict(rows(1000, seed=8))).verdict == "quiet"
        assert detector.drift(detector.predict(1.5 * rows(1000, seed=8))).verdict == "moved"

    def test_it_reads_as_its_words(self, detector, odd):
        seen = detector.drift(detector.predict(odd))
        assert str(seen) == seen.words
        assert "state" not in repr(seen)

    def test_of_rows_that_were_trained_on_it_says_so(self):
        detector = sf.Detector(Ensemble([LocalOutlierFactor()])).fit(rows(1000), progress=False)
        seen = detector.drift(detector.predict(rows(1000)))
        assert seen.verdict == "moved"
        assert seen.words.endswith("but 70% of the rows were trained on, and score low for it: leave them out")

    def test_is_asked_of_what_predict_said(self, detector):
        with pytest.raises(ConfigError, match=r"what predict\(rows\) returns; got ndarray"):
            detector.drift(rows(100))


class TestSaving:
    def test_it_comes_back_as_it_was(self, detector, odd, tmp_path):
        folder = detector.save(tmp_path / "detector")
        again = sf.Detector.load(folder)
        before, after = detector.predict(odd), again.predict(odd)
        np.testing.assert_array_equal(after.score, before.score)
        np.testing.assert_array_equal(after.p_value, before.p_value)
        np.testing.assert_array_equal(after.attribution, before.attribution)
        assert repr(again) == repr(detector)

    @pytest.mark.parametrize("score", ["typicality", "denoising_error", "score_norms", "local_dimension"])
    def test_whatever_it_scores_by(self, score, odd, tmp_path):
        detector = sf.Detector(score, training={"max_steps": 20}).fit(rows(200), progress=False)
        again = sf.Detector.load(detector.save(tmp_path / "detector"))
        np.testing.assert_allclose(again.score(odd), detector.score(odd), rtol=1e-12)

    def test_several_scores_together_share_nothing_in_a_file(self, odd, tmp_path):
        detector = sf.Detector(training={"max_steps": 20}).fit(rows(200), progress=False)
        again = sf.Detector.load(detector.save(tmp_path / "detector"))
        np.testing.assert_array_equal(again.score(odd), detector.score(odd))

    def test_a_score_of_ones_own_cannot_be_saved(self, tmp_path):
        class Reversed(LocalOutlierFactor):
            def _compare(self, x):
                return -super()._compare(x)

        for score in (Reversed(), Ensemble([LocalOutlierFactor(), Reversed()])):
            detector = sf.Detector(score).fit(rows(100), progress=False)
            with pytest.raises(ConfigError, match="Reversed"):
                detector.save(tmp_path / "detector")
        assert not list(tmp_path.iterdir())

    def test_threads_may_save_at_one_place(self, tmp_path):
        detector, problems = quick().fit(rows(100), progress=False), []

        def save() -> None:
            try:
                detector.save(tmp_path / "detector")
            except ModelFileError as error:  # another one was there first
                problems.append(error)

        threads = [threading.Thread(target=save) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(problems) < len(threads)
        assert [path.name for path in tmp_path.iterdir()] == ["detector"]
        sf.Detector.load(tmp_path / "detector")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content["settings"].update(colour="red"),
            lambda content: content["settings"].update(seed=-1),
            lambda content: content.update(settings=None),
            lambda content: content.update(sha256=None),
            lambda content: content["score"]["members"][0].update(densities=[-1]),
        ],
    )
    def test_a_description_that_somebody_has_edited_is_told(self, damage, tmp_path):
        file = quick().fit(rows(100), progress=False).save(tmp_path / "detector") / "detector.json"
        content = json.loads(file.read_text())
        # As the version before wrote it, which had no seal.
        content |= {"version": 1}
        del content["seal"]
        file.write_text(json.dumps(content))
        sf.Detector.load(file.parent)
        damage(content)
        file.write_text(json.dumps(content))
        with pytest.raises(ModelFileError, match="damaged"):
            sf.Detector.load(file.parent)

    @pytest.mark.parametrize(
        ("written", "edited"),
        [
            ('"usual": ', '"usual": 1'),
            ('"version": 2', '"version": 1'),
            ('"tail": false', '"tail": true'),
            ('"kind": "rows"', '"kind": "weights"'),
            ('"seal": "', '"seal": "0'),
            ('"seal": "', '"other": "'),
        ],
    )
    def test_a_digit_or_a_name_that_was_changed_is_told(self, written, edited, tmp_path):
        file = quick().fit(rows(100), progress=False).save(tmp_path / "detector") / "detector.json"
        content = file.read_text()
        assert written in content
        file.write_text(content.replace(written, edited))
        with pytest.raises(ModelFileError, match=r"detector.json is damaged, or was edited.*copy it again"):
            sf.Detector.load(file.parent)

    def test_a_density_of_another_detector_is_told(self, detector, tmp_path):
        folder = detector.save(tmp_path / "detector")
        other = sf.Detector("nll", training={"max_steps": 5}).fit(rows(2000), progress=False).save(tmp_path / "other")
        shutil.rmtree(folder / "density-0")
        shutil.copytree(other / "density-0", folder / "density-0")
        with pytest.raises(ModelFileError, match=r"density-0/model.json is not the one .* copy the whole folder"):
            sf.Detector.load(folder)

    @pytest.mark.parametrize("content", ["[" * 100_000, "", "[]"])
    def test_a_description_that_is_none_is_told(self, content, tmp_path):
        (tmp_path / "detector.json").write_text(content)
        with pytest.raises(ModelFileError):
            sf.Detector.load(tmp_path)

    def test_a_name_that_no_file_may_have_is_told(self, tmp_path):
        with pytest.raises(ModelFileError, match="cannot be written"):
            quick().fit(rows(100), progress=False).save(tmp_path / ("x" * 300))

    def test_labels_and_groups_come_along(self, tmp_path):
        detector = sf.Detector("nll", group="season", training=QUICK).fit(daily(), progress=False)
        again = sf.Detector.load(detector.save(tmp_path / "detector"))
        xr.testing.assert_equal(again.predict(daily(9)).p_value, detector.predict(daily(9)).p_value)
        new = daily(9)
        new.attrs["units"] = "degC"
        with pytest.raises(LayoutError, match="units"):
            again.predict(new)

    def test_there_is_no_pickle_in_it(self, detector, tmp_path):
        folder = detector.save(tmp_path / "detector")
        kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert kinds == {".json", ".safetensors"}

    def test_what_is_damaged_is_told(self, detector, tmp_path):
        folder = detector.save(tmp_path / "detector")
        numbers = folder / "detector.safetensors"
        numbers.write_bytes(numbers.read_bytes()[:-1] + b"\x01")
        with pytest.raises(ModelFileError, match="damaged"):
            sf.Detector.load(folder)
        detector.save(folder)  # it may be replaced
        description = json.loads((folder / "detector.json").read_text())
        (folder / "detector.json").write_text(json.dumps({**description, "version": 99}))
        with pytest.raises(ModelFileError, match="version 99"):
            sf.Detector.load(folder)
        shutil.rmtree(folder)
        with pytest.raises(ModelFileError, match="no detector"):
            sf.Detector.load(folder)

    def test_what_is_no_detector_is_not_replaced(self, detector, tmp_path):
        (tmp_path / "notes.txt").write_text("keep")
        with pytest.raises(ModelFileError, match="something else"):
            detector.save(tmp_path)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"seed": -1}, "seed"),
            ({"block": 0}, "block"),
            ({"tail": "yes"}, "tail"),
            ({"group": 3}, "group"),
        ],
    )
    def test_arguments_out_of_range(self, arguments, message):
        with pytest.raises(ConfigError, match=message):
            sf.Detector(**arguments)

    @pytest.mark.parametrize("score", ["diffusion_time", "nll"])
    def test_a_value_that_hides_all_others_is_warned_of(self, score):
        values = rows(200)
        values[::50, 1] = 1e20
        with pytest.warns(UserWarning, match=r"element \[1\]: .* and one is 1e\+20: beside it the others"):
            sf.Detector(score, training={"max_steps": 5}).fit(values, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sf.Detector("diffusion_time").fit(np.random.default_rng(0).standard_cauchy((500, 3)), progress=False)

    def test_a_score_that_there_is_not(self):
        with pytest.raises(ConfigError, match="did you mean nll"):
            sf.Detector("nl")

    @pytest.mark.parametrize("ask", ["score", "predict", "calibrate", "decision_function", "save", "explain"])
    def test_before_it_is_fitted(self, ask, tmp_path):
        with pytest.raises(ConfigError, match="fit"):
            getattr(sf.Detector(), ask)(tmp_path if ask == "save" else rows(10))

    @pytest.mark.parametrize(
        ("data", "error"),
        [
            (rows(3), DataError),
            (rows(100)[:, 0], ShapeError),
            (np.empty((100, 0)), ShapeError),
            ([["a", "b"]], DataError),
            (np.full((100, 2), np.nan), DataError),
            ("there/is/no.zarr", SciflowError),
            (None, SciflowError),
        ],
    )
    def test_rows_that_cannot_be_fitted_on(self, data, error):
        with pytest.raises(error):
            sf.Detector("nll").fit(data, progress=False)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (np.empty((0, 3)), "0 rows"),
            (rows(100) + np.array([0, 1e9, 0]), r"element \[1\].*take off an offset"),
            (1e100 * rows(100), "beyond float32"),
        ],
    )
    def test_rows_of_which_single_precision_would_leave_nothing(self, data, message):
        with pytest.raises(DataError, match=message):
            sf.Detector().fit(data, progress=False)

    @pytest.mark.parametrize("weights", ["much", ["a"] * 50, [1.0, 2.0], [1.0] * 51])
    def test_weights_that_are_not_one_a_row(self, detector, weights):
        with pytest.raises(DataError, match="weights"):
            sf.Detector(detector.fitted_score).fit(rows(100), progress=False).calibrate(
                rows(50, seed=3), weights=weights
            )

    @pytest.mark.parametrize("size", [1e308, 1e-320])
    def test_weights_of_which_no_sum_can_be_taken(self, detector, size):
        again = sf.Detector(detector.fitted_score).fit(rows(100), progress=False)
        with pytest.raises(DataError, match=r"weights have to lie between 1e-100 and 1e\+100.*by one factor"):
            again.calibrate(rows(50, seed=3), weights=np.full(50, size))
        again.calibrate(rows(50, seed=3), weights=np.ones(50))
        with pytest.raises(DataError, match="weights"):
            again.predict(rows(5), weights=np.full(5, size))

    def test_a_method_beside_a_false_alarm_rate(self, detector, odd):
        with pytest.raises(ConfigError, match="method 'by' is one of fdr="):
            detector.predict(odd, false_alarm_rate=0.1, method="by")

    def test_drift_of_what_is_no_detection(self, detector, odd):
        with pytest.raises(ConfigError, match=r"drift is of what predict\(rows\) returns; got ndarray"):
            detector.drift(odd)

    def test_rows_of_another_shape(self, detector):
        with pytest.raises(ShapeError, match="3"):
            detector.predict(rows(10, num_features=4))

    def test_another_context_than_it_knows(self, detector):
        with pytest.raises(ShapeError, match="context"):
            detector.predict(rows(10), rows(10, 1))

    def test_labels_that_are_not_one_a_row(self, detector):
        with pytest.raises(DataError, match="groups"):
            detector.predict(rows(10), groups=[1, 2])

    def test_calibrating_on_rows_that_were_trained_on_is_warned_of(self):
        detector = sf.Detector("nll", training=QUICK).fit(rows(), progress=False)
        with pytest.warns(UserWarning, match="trained on"):
            detector.calibrate(rows())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            detector.calibrate(rows(seed=9))

    @pytest.mark.parametrize("level", [0, 1, -0.1, "much"])
    def test_a_level_that_is_none(self, detector, odd, level):
        with pytest.raises(ConfigError, match="fdr"):
            detector.predict(odd, fdr=level)
