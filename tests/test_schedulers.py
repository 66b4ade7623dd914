"""The examples for schedulers: what they hand to sciflow, and what they make of its exit code."""

from __future__ import annotations

import configparser
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

import sciflow as sf
from sciflow.anomaly.scheduled.record import DetectionRun

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "cluster" / "detect"


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(EXAMPLES / name)
    return parser


def shell(command: str, code: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell's command with a sciflow that ends with a code."""
    program = folder / ".venv" / "bin" / "sciflow"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    return subprocess.run(
        ["sh", "-c", command], env=environment, cwd=folder, text=True, capture_output=True, check=False
    )


class TestCron:
    def test_the_line_mails_anomalies_and_hides_no_failure(self, tmp_path):
        (line,) = [line for line in (EXAMPLES / "crontab").read_text().splitlines() if line[:1].isdigit()]
        *when, command = line.split(maxsplit=5)
        assert when == ["17", "6", "*", "*", "*"]
        command = command.replace("cd /srv/climate", f"cd {tmp_path}")
        for code in (0, 3):
            assert shell(command, code, tmp_path).stdout == ""
        assert "workflows/era5_daily_cycle.yaml" in shell(command, 10, tmp_path).stdout


class TestSystemd:
    def test_the_service_takes_anomalies_for_a_success_and_nothing_else(self):
        service = unit("sciflow-detect.service")["Service"]
        assert service["Type"] == "oneshot"
        assert service["SuccessExitStatus"] == "10"
        assert service["ExecStart"].startswith(f"{service['WorkingDirectory']}/.venv/bin/sciflow detect ")

    def test_the_timer_makes_up_for_what_it_missed(self):
        timer = unit("sciflow-detect.timer")["Timer"]
        assert (timer["OnCalendar"], timer["Persistent"]) == ("*-*-* 06:17:00", "true")

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
    @pytest.mark.parametrize("name", ["sciflow-detect.service", "sciflow-detect.timer"])
    def test_systemd_accepts_it(self, name):
        done = subprocess.run(
            ["systemd-analyze", "verify", EXAMPLES / name], capture_output=True, text=True, check=False
        )
        assert "Unknown" not in done.stderr


@pytest.fixture(scope="module")
def job() -> Any:
    return yaml.safe_load((EXAMPLES / "cronjob.yaml").read_text())


class TestTheCronJob:
    def test_forbids_two_at_once(self, job):
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        known = {"schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "jobTemplate"}
        assert set(job["spec"]) == known | {"successfulJobsHistoryLimit", "failedJobsHistoryLimit"}

    def test_mounts_the_one_volume_and_works_there(self, job):
        claim = yaml.safe_load((ROOT / "cluster" / "kuberay-volume.yaml").read_text())
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        (volume,), (container,) = pod["volumes"], pod["containers"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": container["workingDir"]}]

    @pytest.mark.parametrize(("code", "status"), [(0, 0), (10, 0), (1, 1), (3, 1), (13, 1)])
    def test_takes_anomalies_for_a_success_and_nothing_else(self, code, status, job, tmp_path):
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["sh", "-c"]
        assert shell(container["args"][0], code, tmp_path).returncode == status
        ray_job = yaml.safe_load((EXAMPLES / "kuberay-detect.yaml").read_text())
        assert shell(ray_job["spec"]["entrypoint"], code, tmp_path).returncode == status


class TestTasks:
    """The files for Airflow and Prefect, with these two replaced: what they call, and what becomes of it."""

    @pytest.fixture
    def called(self, monkeypatch) -> list[Any]:
        calls: list[Any] = []

        def detect(workflow, **options):
            calls.append((Path(workflow), options))
            unreadable = ("day.zarr: shard test/1 is missing",) if options["start"] == "1999" else ()
            return DetectionRun(Path("/out"), rows=5, flagged=2, unreadable=unreadable)

        monkeypatch.setitem(vars(sf), "detect", detect)
        return calls

    @pytest.fixture
    def airflow(self, monkeypatch) -> list[Any]:
        tasks: list[Any] = []
        sdk = ModuleType("airflow.sdk")
        sdk.dag = lambda **options: lambda function: function  # type: ignore[attr-defined]
        sdk.task = lambda function: lambda **given: tasks.append(function)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "airflow", ModuleType("airflow"))
        monkeypatch.setitem(sys.modules, "airflow.sdk", sdk)
        runpy.run_path(str(ROOT / "workflows" / "detect_airflow.py"))
        return tasks

    @pytest.fixture
    def prefect(self, monkeypatch) -> SimpleNamespace:
        module = ModuleType("prefect")
        module.flow = module.task = lambda **options: lambda function: function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "prefect", module)
        return SimpleNamespace(**runpy.run_path(str(ROOT / "workflows" / "detect_prefect.py")))

    def check(self, called: list[Any], found: dict[str, Any]) -> None:
        ((workflow, options),) = called
        assert (ROOT / "workflows" / workflow.name).exists()
        assert options["runs"] == workflow.parents[1] / "runs"
        assert found == {"rows": 5, "flagged": 2, "drift": None, "report": "/out/report.html"}

    def test_airflow_s_judges_what_is_new_or_a_range(self, airflow, called):
        (detect,) = airflow
        self.check(called, detect(params={"start": None, "stop": None}))
        detect(params={"start": "2026-01", "stop": "2026-02"})
        assert (called[1][1]["start"], called[1][1]["stop"]) == ("2026-01", "2026-02")

    def test_airflow_s_fails_where_an_input_could_not_be_read(self, airflow, called):
        with pytest.raises(RuntimeError, match="shard test/1 is missing"):
            airflow[0](params={"start": "1999", "stop": None})

    def test_prefect_s_judges_what_is_new_or_a_range(self, prefect, called):
        self.check(called, prefect.era5_detection())
        prefect.era5_detection("2026-01", "2026-02")
        assert (called[1][1]["start"], called[1][1]["stop"]) == ("2026-01", "2026-02")

    def test_prefect_s_fails_where_an_input_could_not_be_read(self, prefect, called):
        with pytest.raises(RuntimeError, match="shard test/1 is missing"):
            prefect.era5_detection("1999")
