"""The files beside the package are valid for the programs that read them, and call commands that exist."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas"
RAY_JOBS = sorted(CLUSTER.rglob("kuberay-*.yaml"))
METADATA = ("name", "namespace", "labels", "annotations")


def load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def closed(schema: Any) -> Any:
    """The schema, with every object closed that lists its properties: what Kubernetes prunes silently is an error."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(part) for key, part in schema.items()}
    lists_properties = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if lists_properties and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def errors(manifest: Any, schema: Any) -> list[str]:
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


@pytest.fixture(scope="module")
def ray_job_schema() -> Any:
    path = SCHEMAS / "ray.io_rayjobs.yaml"
    if not path.exists():
        pytest.skip("KubeRay's resource definitions do not lie beside the project")
    (version,) = [v for v in load(path)["spec"]["versions"] if v["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "propertyNames": {"enum": METADATA}, "required": ["name"]}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def ray_jobs() -> list[Path]:
    return [path for path in RAY_JOBS if load(path)["kind"] == "RayJob"]


@pytest.mark.parametrize("path", ray_jobs(), ids=lambda path: path.name)
class TestRayJobs:
    def test_kuberay_accepts_it(self, path, ray_job_schema):
        assert errors(load(path), ray_job_schema) == []

    @pytest.mark.parametrize(
        "place",
        [
            (),
            ("metadata",),
            ("spec",),
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0),
            ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "volumes", 0),
        ],
        ids=lambda place: str(place[-1]) if place else "top",
    )
    def test_a_misspelt_key_is_rejected_anywhere(self, path, place, ray_job_schema):
        manifest = copy.deepcopy(load(path))
        part = manifest
        for key in place:
            part = part[key]
        part["shutdownAfterJobFinish"] = True
        (error,) = errors(manifest, ray_job_schema)
        assert "shutdownAfterJobFinish" in error

    def test_a_wrong_type_is_rejected(self, path, ray_job_schema):
        manifest = load(path)
        manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "four"
        assert errors(manifest, ray_job_schema) == [
            "spec.rayClusterSpec.workerGroupSpecs.0.replicas: 'four' is not of type 'integer'"
        ]

    def test_every_pod_mounts_the_one_volume_and_works_there(self, path):
        claim = load(CLUSTER / "kuberay-volume.yaml")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        cluster = load(path)["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (volume,) = pod["volumes"]
            assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            for container in pod["containers"]:
                (mount,) = container["volumeMounts"]
                assert mount["name"] == volume["name"]
                assert mount["mountPath"] == container["workingDir"]

    def test_there_is_a_gpu_for_every_worker(self, path):
        job = load(path)["spec"]
        (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
        (container,) = group["template"]["spec"]["containers"]
        wants_gpu = "cluster.use_gpu=true" in job["entrypoint"] or "--gpu" in job["entrypoint"]
        assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == wants_gpu
        asked = re.search(r"cluster\.num_workers=(\d+)", job["entrypoint"])
        assert asked is None or int(asked.group(1)) == group["replicas"]

    def test_its_ray_is_the_image_s(self, path):
        (version,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
        assert load(path)["spec"]["rayClusterSpec"]["rayVersion"] == version


class TestVolume:
    @staticmethod
    def errors(claim: Any, ray_job_schema: Any) -> list[str]:
        """Hold the claim's spec against that of a claim made for a pod, which the pods of a RayJob can have."""
        part = ray_job_schema["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"]["headGroupSpec"]
        pod = part["properties"]["template"]["properties"]["spec"]["properties"]
        template = pod["volumes"]["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]
        return errors(claim["spec"], template["properties"]["spec"])

    def test_kubernetes_accepts_it(self, ray_job_schema):
        claim = load(CLUSTER / "kuberay-volume.yaml")
        assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
        assert set(claim) == {"apiVersion", "kind", "metadata", "spec"}
        assert self.errors(claim, ray_job_schema) == []

    def test_a_misspelt_key_is_rejected(self, ray_job_schema):
        claim = load(CLUSTER / "kuberay-volume.yaml")
        claim["spec"]["storageClass"] = claim["spec"].pop("storageClassName")
        (error,) = self.errors(claim, ray_job_schema)
        assert "storageClass" in error


class TestRayUp:
    @staticmethod
    def check(config: dict[str, Any]) -> None:
        util = pytest.importorskip("ray.autoscaler._private.util")
        schema = Path(util.ray.autoscaler.__file__).with_name("ray-schema.json")
        jsonschema.validate(config, load(schema))
        util.validate_config(util.prepare_config(config))

    def test_ray_accepts_it(self):
        self.check(load(CLUSTER / "ray-cluster.yaml"))

    def test_a_misspelt_key_is_rejected(self):
        config = load(CLUSTER / "ray-cluster.yaml")
        config["worker_start_ray_command"] = config.pop("worker_start_ray_commands")
        with pytest.raises(jsonschema.ValidationError, match="worker_start_ray_command"):
            self.check(config)


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
class TestScripts:
    def test_bash_can_read_it(self, path):
        subprocess.run(["bash", "-n", path], check=True)
        assert os.access(path, os.X_OK)

    @pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
    def test_shellcheck_finds_nothing(self, path):
        done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
        assert done.stdout == ""


class TestSlurm:
    """The script with ``srun`` and ``ray`` replaced: what is started, and what the job's exit status says."""

    def run(self, folder: Path, ray: str, *command: str) -> subprocess.CompletedProcess[str]:
        programs = {
            "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
            "ray": f'printf "%s\\n" "$@" > {shlex.quote(str(folder / "arguments"))}\n{ray}',
            "hostname": "echo 192.0.2.10 fd00::10",
        }
        for name, body in programs.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / name).chmod(0o755)
        environment = {
            "PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "SLURM_JOB_ID": "71234",
            "SLURM_JOB_NUM_NODES": "4",
            "SLURM_CPUS_PER_TASK": "16",
        }
        arguments = ["bash", str(CLUSTER / "slurm.sh"), *command]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)

    START = 'while [[ $1 != -- ]]; do shift; done; shift; exec "$@"'

    def test_the_command_runs_with_its_arguments_whole_and_a_token(self, tmp_path):
        code = "import os, sys; print(sys.argv[1:], os.environ['RAY_AUTH_MODE'], len(os.environ['RAY_AUTH_TOKEN']))"
        done = self.run(tmp_path, self.START, "python", "-c", code, "a b", "$HOME")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "['a b', '$HOME'] token 64"

    def test_its_failure_is_the_job_s(self, tmp_path):
        assert self.run(tmp_path, self.START, "bash", "-c", "exit 7").returncode == 7

    def test_a_cluster_that_never_came_up_is_a_failure(self, tmp_path):
        done = self.run(tmp_path, "exit 0", "true")
        assert done.returncode == 1
        assert "did not start on 192.0.2.10:21234" in done.stderr

    def test_without_a_command_it_says_what_to_give(self, tmp_path):
        done = self.run(tmp_path, "exit 0")
        assert done.returncode == 2
        assert "no command" in done.stderr

    def test_ray_knows_every_option(self, tmp_path):
        scripts = pytest.importorskip("ray.scripts.scripts")
        self.run(tmp_path, "exit 0", "true")
        command, *arguments = (tmp_path / "arguments").read_text().split("\n--\n")[0].splitlines()
        known = {
            option
            for ray_command in (scripts.cli.commands[command], scripts.start)
            for parameter in ray_command.params
            for option in parameter.opts
        }
        assert {argument for argument in arguments if argument.startswith("-")} <= known
        assert "--min-nodes" in arguments


def command_lines(text: str) -> list[str]:
    """Every line that runs ``sciflow``, in scripts, comments, manifests and documentation; prose is left out."""
    text = re.sub(r"\\\n\s*#?\s*", "", text)  # Continued lines are one.
    before = r"(?:^[#\s$]*|&& |entrypoint: |slurm\.sh |[`']|^ *- |bin/)"
    found = re.findall(before + r"sciflow +((?!\.)[^`'\"\n]+)", text, re.MULTILINE)
    return [re.split(r" (?:&&|\||>|;|#)", line)[0].strip() for line in found]


FILES = [*sorted(path for path in CLUSTER.rglob("*") if path.is_file()), ROOT / "datasets" / "README.md"]
COMMANDS = [(path.name, line) for path in FILES for line in command_lines(path.read_text(encoding="utf-8"))]
COMMANDS += [
    (path.name, load(path)["shard"].removeprefix("sciflow ")) for path in sorted((ROOT / "datasets").glob("*.yaml"))
]


@pytest.fixture(scope="module")
def cli() -> Any:
    from sciflow.cli import app

    return pytest.importorskip("typer.main").get_command(app)


class TestCommands:
    @staticmethod
    def check(cli: Any, line: str) -> None:
        """Hold a command line against the command's own parser.

        Raises:
            ValueError: There is no such command, an option is unknown, or an argument is missing.
        """
        name, *arguments = shlex.split(line)
        if name == "--help":
            return
        if name not in cli.commands:
            raise ValueError(f"sciflow {line}: no command {name!r}")
        command = cli.commands[name]
        context = command.context_class(command, info_name=name)
        try:
            values, left, _ = command.make_parser(context).parse_args(arguments)
        except Exception as error:
            raise ValueError(f"sciflow {line}: {error}") from error
        missing = [p.name for p in command.params if p.required and values.get(p.name) in (None, ())]
        if missing or left:
            raise ValueError(f"sciflow {line}: missing {missing}, too many {left}")

    def test_the_commands_are_found(self):
        found = {(name, line.split()[0]) for name, line in COMMANDS}
        assert {("kuberay-train.yaml", "train"), ("kuberay-score.yaml", "score")} <= found
        assert {("slurm.sh", "train"), ("slurm.sh", "score"), ("ray-cluster.yaml", "train")} <= found
        assert {("README.md", "train"), ("README.md", "score"), ("htru2.yaml", "shard")} <= found
        for name in ("crontab", "sciflow-detect.service", "cronjob.yaml", "kuberay-detect.yaml", "README.md"):
            assert (name, "detect") in found

    @pytest.mark.parametrize(("name", "line"), COMMANDS, ids=lambda part: part)
    def test_it_is_a_command_that_exists(self, cli, name, line):
        self.check(cli, line)

    @pytest.mark.parametrize(
        "line",
        ["trian workflows/era5_daily_cycle.yaml", "train workflows/era5_daily_cycle.yaml --adress auto", "train"],
    )
    def test_a_misspelt_one_is_rejected(self, cli, line):
        with pytest.raises(ValueError, match="sciflow tr"):
            self.check(cli, line)

    def test_every_override_is_a_key_of_the_workflow(self):
        from sciflow.config import load_workflow

        overrides = {
            word for _, line in COMMANDS if line.startswith("train ") for word in shlex.split(line) if "=" in word
        }
        assert "cluster.use_gpu=true" in overrides
        load_workflow({"name": "any", "data": {"store": "any.zarr"}}, sorted(overrides))

    def test_the_workflow_files_exist(self):
        named = {word for _, line in COMMANDS for word in shlex.split(line) if word.startswith("workflows/")}
        assert named
        assert [word for word in named if not (ROOT / word).exists()] == []
