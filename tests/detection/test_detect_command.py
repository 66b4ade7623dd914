"""``sciflow detect`` as schedulers call it: exit codes, a line or two, a dry run that writes nothing, figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from stored import contents
from watched import World

import sciflow as sf
from sciflow.anomaly.scheduled import prometheus
from sciflow.anomaly.scheduled.check import check
from sciflow.anomaly.scheduled.record import DetectionRun
from sciflow.cli import main
from sciflow.config import Workflow, explained, from_yaml, load_workflow
from sciflow.errors import ConfigError, DataError


@pytest.fixture
def sciflow(world, monkeypatch, capfd):
    """Run the command in this process; returns exit status, standard output and standard error."""
    monkeypatch.chdir(world.root)
    file = world.root / "workflow.yaml"

    def run(*arguments: str) -> tuple[int, str, str]:
        file.write_text(yaml.safe_dump(world.workflow))
        monkeypatch.setattr(sys, "argv", ["sciflow", "detect", str(file), "--quiet", "--local", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


class TestTheExitCode:
    def test_says_what_came_of_it(self, world, sciflow):
        pattern = world.workflow["detection"]["stores"]
        assert sciflow() == (0, f"nothing new: {world.out} is up to date\n", f"note: no store matches {pattern}\n")
        world.come_in(0)
        status, out, err = sciflow()
        assert (status, err) == (0, "")
        assert re.match(
            r"quiet: the bulk of the scores is as in calibration \(p = [\d.]+\)\n0 rows newly flagged of 12", out
        )
        world.come_in(1, odd=True)
        status, out, err = sciflow()
        assert (status, err) == (10, "")
        assert out.endswith(f"2 rows newly flagged of 12 in 1 shard; 1 event in all: {world.out / 'report.html'}\n")
        (world.root / "incoming" / "other.zarr").mkdir()
        status, out, err = sciflow()
        assert status == 3
        assert err.startswith("left for the next run: ")
        assert err.count("\n") == 1
        world.come_in(2, odd=True)
        assert sciflow()[0] == 13

    def test_of_a_failure_is_another(self, world, sciflow):
        status, out, err = sciflow("detection.fdrr=0.1")
        assert (status, out) == (1, "")
        assert err == "error: detection.fdrr: unknown key; did you mean fdr?\n"
        world.come_in(0)
        sciflow()
        status, out, err = sciflow("--from", "yesterday")
        assert (status, out) == (1, "")
        assert err == "error: --from, --to: 'yesterday' is no time, such as 2026-01-31 or 2026-01-31T06\n"


class TestTheCheck:
    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("detection.score=nlll", "detection.score: score 'nlll': did you mean nll?"),
            ("detection.calibration.group=latt", "detection.calibration: group 'latt': did you mean lat?"),
            ("detection.calibration.grp=lat", "detection.calibration.grp: unknown key; did you mean group?"),
            ("detection.method=holm", "detection.method: got 'holm', it must be 'bh', 'by', 'lord' or 'saffron'"),
            ("detection.fdr=0", "detection.fdr: got 0, it must be greater than 0"),
            ("detection.notify={webhook: example.org}", "it must be a URL that begins with https:// or http://"),
            (
                "detection.score={nll: {method: nonsense}}",
                "NSF knows its log p by method 'exact' alone",
            ),
            ("detection.score=[nll, {nll: {tolerance: -1}}]", "method 'exact' takes no options; got tolerance"),
            ("detection={fdr: 0.1, false_alarm_rate: 0.01}", "detection: false_alarm_rate and fdr are both given"),
            ("detection={method: by, false_alarm_rate: 0.01}", "detection: false_alarm_rate and method are both given"),
        ],
    )
    def test_knows_the_section(self, override, words, world, monkeypatch, capfd):
        file = world.root / "workflow.yaml"
        file.write_text(yaml.safe_dump(world.workflow))
        monkeypatch.setattr(sys, "argv", ["sciflow", "check", str(file), override])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 1
        assert words in capfd.readouterr().err

    @pytest.mark.parametrize("score", [{"nll": {"method": "ode", "tolerance": 1e-3}}, "typicality", "latent_norm"])
    def test_passes_options_that_there_are(self, score, world):
        check(load_workflow({**world.workflow, "model": {"name": "diffusion"}, "detection": {"score": score}}))

    @pytest.mark.parametrize(
        ("detection", "words"),
        [
            (
                {"fdr": 0.1},
                "648 test events calibrate: at FDR 0.1 an odd event alone is flagged among 64 new ones at the most",
            ),
            ({"calibration": {"group": "lat"}}, "in 3 groups of "),
            ({"calibration": {"block": 30}}, "blocks of test events calibrate: "),
            ({"false_alarm_rate": 0.05}, "enough for a false-alarm rate of 0.05"),
            ({"false_alarm_rate": 0.001}, "999 are needed for a false-alarm rate of 0.001"),
        ],
        ids=str,
    )
    def test_says_what_the_test_events_are_enough_for(self, detection, words, world):
        assert words in check(load_workflow({**world.workflow, "detection": detection}))

    def test_refuses_a_store_without_test_events(self, world, tmp_path):
        rows = np.random.default_rng(0).normal(size=(50, 2))
        sf.shard(rows, tmp_path / "rows.zarr", split=(0.8, 0.2, 0.0), progress=False)
        with pytest.raises(ConfigError, match="no test events"):
            check(load_workflow({"name": "demo", "data": {"store": str(tmp_path / "rows.zarr")}, "detection": {}}))

    def test_knows_that_a_gap_takes_a_time(self, world, tmp_path):
        check(load_workflow(world.workflow, ["detection.events.gap=2"]))
        sf.shard(np.random.default_rng(0).normal(size=(50, 2)), tmp_path / "rows.zarr", progress=False)
        workflow = {"name": "demo", "data": {"store": str(tmp_path / "rows.zarr")}, "detection": {"events": {"gap": 2}}}
        with pytest.raises(ConfigError, match=r"file: detection.events.gap: got 2, .* \(row\) is a time: leave it out"):
            check(load_workflow(workflow), "file")

    def test_what_was_not_given_does_not_stand_beside_a_false_alarm_rate(self, world):
        workflow = load_workflow(world.workflow, ["detection.false_alarm_rate=0.01"])
        for again in (Workflow.model_validate_json(workflow.model_dump_json()), from_yaml(explained(workflow))):
            assert load_workflow(again, ["detection.out=elsewhere"]).detection.false_alarm_rate == 0.01
        resolved = load_workflow(load_workflow(world.workflow), ["detection.false_alarm_rate=0.02"])
        assert resolved.detection.false_alarm_rate == 0.02

    def test_passes_what_is_documented(self):
        section = {"fdr": 0.05, "calibration": {"group": "month"}, "notify": {"webhook": "https://example.org/hook"}}
        found = load_workflow({"name": "era5", "data": {"store": "era5.zarr"}, "detection": section}).detection
        assert (found.fdr, found.calibration.group, found.notify.retries) == (0.05, "month", 4)


class TestADryRun:
    def test_says_what_would_be_done_and_writes_nothing(self, world, sciflow):
        world.come_in(0)
        world.come_in(1, shard_rows=4)
        (world.root / "incoming" / "other.zarr").mkdir()
        before = contents(world.root / "runs")
        status, out, err = sciflow("--dry-run")
        assert (status, err) == (0, "")
        first, *lines = out.splitlines()
        assert first == "run 1: 4 shards of 2 stores to be judged"
        assert lines[:2] == ["  day000.zarr (new): test/0", "  day001.zarr (new): test/0, test/1, test/2"]
        assert lines[2].startswith("  left for the next run: ")
        assert contents(world.root / "runs") == before
        sciflow()
        before = contents(world.root / "runs")
        assert sciflow("--dry-run", "--from", "2001-07")[1].startswith(
            "run 2, from 2001-07 to the end: 3 shards of 1 store to be judged\n  day001.zarr (again): test/0"
        )
        assert contents(world.root / "runs") == before


class TestInspect:
    def test_knows_what_was_found(self, world, monkeypatch, capfd):
        world.come_in(0, odd=True)
        world.detect()
        for path in (world.out, world.out / "results.zarr"):
            monkeypatch.setattr(sys, "argv", ["sciflow", "inspect", str(path)])
            with pytest.raises(SystemExit):
                main()
            said = capfd.readouterr().out
            assert said.startswith("detections ")
            assert "flagged      2 of 12 rows" in said
            assert "day000.zarr" in said


class TestMetrics:
    def test_count_and_tell_the_lag(self, world):
        world.come_in(0)
        world.come_in(1, odd=True)
        world.detect()
        world.detect()
        with pytest.raises(ValueError, match="yesterday"):
            world.detect(start="yesterday")
        found = figures(world.out / "metrics.prom")
        assert (found["runs_total"], found["failures_total"]) == (3, 1)
        assert (found["rows_total"], found["flagged_total"], found["last_rows"], found["events"]) == (24, 2, 0, 1)
        assert found["last_run_timestamp_seconds"] >= found["last_success_timestamp_seconds"] > 1.7e9
        assert found["lag_seconds"] == pytest.approx(found["last_success_timestamp_seconds"] - 993945600, abs=1)
        assert found["unreadable"] == found["drift"] == 0

    def test_are_what_prometheus_reads(self, world):
        world.come_in(0)
        world.detect()
        lines = (world.out / "metrics.prom").read_text().splitlines()
        names = set()
        for about, kind, sample in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
            name = about.split()[2]
            names.add(name)
            assert about.startswith(f"# HELP {name} ")
            assert kind in (f"# TYPE {name} counter", f"# TYPE {name} gauge")
            assert kind.endswith("counter") == name.endswith("_total")
            assert re.fullmatch(rf'{name}{{workflow="demo"}} -?[\d.e+-]+', sample)
        assert len(names) == len(prometheus.METRICS)

    def test_begin_anew_where_the_file_is_another(self, tmp_path):
        (tmp_path / "metrics.prom").write_text("sciflow_detect_runs_total{} many\n\0")
        prometheus.write_metrics(tmp_path / "metrics.prom", "demo", DetectionRun(tmp_path), 5.0, None, now=7.0)
        found = figures(tmp_path / "metrics.prom")
        assert (found["runs_total"], found["last_run_seconds"]) == (1, 2)
        assert "lag_seconds" not in found


def figures(file: Path) -> dict[str, float]:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return {line.removeprefix("sciflow_detect_").partition("{")[0]: float(line.split()[-1]) for line in lines}


class TestOnAGpu:
    def test_nothing_is_written_where_there_is_none(self, world, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        world.come_in(0)
        with pytest.raises(ConfigError, match="has no GPU: leave it out"):
            world.detect(use_gpu=True)
        assert not world.out.exists()

    @pytest.mark.gpu
    def test_results_are_those_of_a_processor(self, world, trained, tmp_path):
        other = trained.copy(tmp_path / "other")
        for one in (world, other):
            one.come_in(0, odd=True)
        world.detect(use_gpu=True)
        other.detect()
        np.testing.assert_allclose(world.results.score, other.results.score, rtol=1e-4)
        np.testing.assert_array_equal(world.results.flag, other.results.flag)
        np.testing.assert_allclose(world.results.attribution, other.results.attribution, rtol=1e-2, atol=1e-2)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_every_byte_is_that_of_one_process(self, world, trained, tmp_path):
        other = trained.copy(tmp_path / "other")
        for one in (world, other):
            for day in range(3):
                one.come_in(day, odd=day == 2, shard_rows=4)
        world.detect()
        elsewhere(other)
        assert contents(world.current) == contents(other.current)

    def test_a_cluster_that_is_named_calibrates_too(self, world, trained, tmp_path, monkeypatch):
        other = trained.copy(tmp_path / "other")
        for one in (world, other):
            one.come_in(0, odd=True)
        with monkeypatch.context() as patch:
            patch.setattr(sf.Detector, "fit", None)  # not in this process
            elsewhere(world, address="auto")
        other.detect()
        assert contents(world.current) == contents(other.current)

    def test_what_is_wrong_with_calibration_is_told_as_it_was_raised_there(self, world):
        world.detection["calibration"] = {"group": "day"}
        world.come_in(0)
        with pytest.raises(DataError, match="groups with fewer than"):
            elsewhere(world, address="auto")

    def test_a_shard_that_cannot_be_read_is_left(self, world):
        store = world.come_in(0, shard_rows=4)
        (store / "test" / "events" / "c" / "1" / "0").unlink()
        done = elsewhere(world)
        assert (done.exit_code, done.shards, done.rows) == (3, 2, 8)
        assert "day000.zarr: shard test/1 is missing" in done.unreadable[0]


def elsewhere(world: World, **options: str) -> DetectionRun:
    from sciflow.anomaly.scheduled.detect import detect

    return detect(world.workflow, runs=world.root / "runs", progress=False, **options)
