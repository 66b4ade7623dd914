"""Saved models come back the same, and damaged or dangerous files do not come back at all."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sciflow import model_file
from sciflow.diffusion import Diffusion
from sciflow.errors import ConfigError, ModelFileError
from sciflow.families import load
from sciflow.flows import NSF


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def flow() -> NSF:
    flow = NSF(event_shape=(2, 2), context_shape=(1,), num_transforms=1, hidden_features=(8,), preprocess=["log1p"])
    flow.fit_preprocessing(torch.rand(20, 2, 2), torch.randn(20, 1))
    torch.nn.init.normal_(flow.transform.bijections[1].network.last.weight)
    flow.layout = {"variables": ["t2m"]}
    flow.context_columns = ["hour"]
    flow.provenance = {"rows": 20}
    return flow.eval()


@pytest.fixture
def folder(flow: NSF, tmp_path: Path) -> Path:
    return flow.save(tmp_path / "run" / "model")


def edit(folder: Path, sealed: bool = True, leave_out: str | None = None, **changes: object) -> None:
    """Alter the description, as another version of the program would, or (not sealed) as an accident would."""
    file = folder / "model.json"
    description = json.loads(file.read_text()) | changes
    description.pop(leave_out, None)
    if sealed:
        del description["sha256"]
        written = json.dumps(description, sort_keys=True).encode()
        description["sha256"] = hashlib.sha256(written).hexdigest()
    file.write_text(json.dumps(description))


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_same_to_the_last_bit(self, flow: NSF, tmp_path: Path, dtype: torch.dtype) -> None:
        flow.to(dtype)
        back = load(flow.save(tmp_path / "model"))
        x, context = torch.rand(10, 2, 2, dtype=dtype), torch.zeros(1)
        assert torch.equal(back.log_prob(x, context), flow.log_prob(x, context))
        assert torch.equal(back.sample(3, context, seed=1), flow.sample(3, context, seed=1))
        assert (back.dtype, back.arguments, back.training) == (dtype, flow.arguments, False)
        assert (back.layout, back.provenance) == (flow.layout, flow.provenance)
        assert back.context_columns == flow.context_columns
        assert back.preprocess.is_fitted

    def test_a_run_folder_will_do(self, folder: Path) -> None:
        assert isinstance(load(folder.parent), NSF)

    def test_description_says_what_and_by_which_versions(self, folder: Path) -> None:
        description = json.loads((folder / "model.json").read_text())
        assert description["family"] == "nsf"
        assert description["written_by"]["torch"] == torch.__version__
        assert description["weights"]["bytes"] == (folder / "model.safetensors").stat().st_size

    def test_saving_again_replaces(self, flow: NSF, folder: Path) -> None:
        with torch.no_grad():
            flow.transform.bijections[0].bias += 1
        flow.save(folder)
        x, context = torch.rand(10, 2, 2), torch.zeros(1)
        assert torch.equal(load(folder).log_prob(x, context), flow.log_prob(x, context))
        assert sorted(f.name for f in folder.iterdir()) == ["model.json", "model.safetensors"]


class TestDamage:
    def test_a_flipped_byte(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        with pytest.raises(
            ModelFileError, match=r"model\.safetensors is damaged: its SHA-256 differs from model\.json's"
        ):
            load(folder)

    def test_a_truncated_file(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ModelFileError, match=r"is damaged: it has \d+ bytes, model\.json says"):
            load(folder)

    def test_missing_files(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="no such folder"):
            load(tmp_path / "nowhere")
        with pytest.raises(ModelFileError, match=r"holds no model\.json"):
            load(tmp_path)
        with pytest.raises(ModelFileError, match="is a file: give the folder"):
            load(folder / "model.json")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelFileError, match=r"model\.safetensors cannot be read: No such file"):
            load(folder)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "not JSON"),
            ("[]", '"format" is not'),
            ('{"format": "sciflow-model", "version": 1}', "not what was written"),
        ],
    )
    def test_a_description_that_is_none(self, folder: Path, content: str, message: str) -> None:
        (folder / "model.json").write_text(content)
        with pytest.raises(ModelFileError, match=message):
            load(folder)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"version": 2}, "format version 2, written by a newer sciflow.*upgrade"),
            ({"version": 0}, "format version 0, which there is not"),
            ({"version": True}, "format version True, which there is not"),
            ({"family": ["nsf"]}, "'family' is missing, or not what it must be"),
            ({"weights": None}, "'weights' is missing, or not what it must be"),
            ({"weights": {}}, "bytes, model.json says None"),
            ({"layout": []}, "'layout' is missing, or not what it must be"),
            ({"arguments": {"event_shape": [2**70]}}, "do not make a nsf"),
            ({"family": "nfs"}, "unknown family 'nfs'; did you mean nsf"),
            ({"arguments": {"event_shape": [2, 2], "bins": 3}}, "do not make a nsf"),
            ({"arguments": {"event_shape": [3]}}, "do not make a nsf"),
            ({"dtype": "float33"}, "do not make a nsf"),
        ],
    )
    def test_a_description_that_does_not_fit(self, folder: Path, changes: dict, message: str) -> None:
        edit(folder, **changes)
        with pytest.raises(ModelFileError, match=message):
            load(folder)

    def test_a_description_of_a_network_that_cannot_be(self, tmp_path: Path) -> None:
        folder = Diffusion((2,), network={"transformer": {"hidden_features": (8,)}}).save(tmp_path / "model")
        edit(folder, arguments={"event_shape": [2], "network": {"transformer": {"num_heads": 0}}})
        with pytest.raises(ModelFileError, match="do not make a diffusion: network: transformer: num_heads must be"):
            load(folder)

    @pytest.mark.parametrize("error", [ZeroDivisionError, OverflowError, TypeError, KeyError])
    def test_a_description_that_cannot_be_built(self, folder: Path, error: type[Exception]) -> None:
        class Fails(NSF):
            def __init__(self, **arguments: object) -> None:
                raise error

        with pytest.raises(ModelFileError, match=f"do not make a nsf: {error.__name__}"):
            model_file.load(folder, {"nsf": Fails})

    @pytest.mark.parametrize("name", ["version", "family", "arguments", "dtype", "layout", "provenance", "weights"])
    def test_a_description_that_leaves_something_out(self, folder: Path, name: str) -> None:
        edit(folder, leave_out=name)
        with pytest.raises(ModelFileError, match=r"model\.json"):
            load(folder)

    def test_descriptions_of_before_there_were_names_of_the_context(self, folder: Path) -> None:
        edit(folder, leave_out="context_columns")
        assert load(folder).context_columns is None

    @pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
    def test_numbers_that_are_none(self, folder: Path, number: str) -> None:
        file = folder / "model.json"
        file.write_text(file.read_text().replace('"tail_bound": 3.0', f'"tail_bound": {number}'))
        with pytest.raises(ModelFileError, match=r"model\.json is damaged"):
            load(folder)

    @pytest.mark.parametrize(
        "changes",
        [
            {"arguments": {"event_shape": [2, 2], "num_transforms": 1, "tail_bound": 4.0}},
            {"dtype": "float16"},
            {"layout": []},
            {"weights": {}},
        ],
    )
    def test_an_altered_description(self, folder: Path, changes: dict) -> None:
        edit(folder, sealed=False, **changes)
        with pytest.raises(ModelFileError, match="damaged, or was edited"):
            load(folder)


class TestFamilyOf:
    def test_tells_what_a_folder_holds(self, folder: Path) -> None:
        assert [model_file.family_of(path) for path in (folder, folder.parent)] == ["nsf", "nsf"]

    def test_refuses_what_cannot_be_loaded_either(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="no such folder"):
            model_file.family_of(tmp_path / "nowhere")
        with pytest.raises(ConfigError, match="is no path"):
            model_file.family_of(None)


class TestPlaces:
    @pytest.mark.parametrize("path", [None, 3, ["model"], b"model", "mo\0del"])
    def test_what_is_no_path_is_refused(self, flow: NSF, path) -> None:
        for of in (load, flow.save):
            with pytest.raises(ConfigError, match="is no path: give that of a folder"):
                of(path)

    def test_a_path_that_no_disk_holds(self, flow: NSF) -> None:
        with pytest.raises(ModelFileError, match="cannot be read: File name too long"):
            load("a" * 5000)
        with pytest.raises(ModelFileError, match=r"cannot be saved in .*File name too long"):
            flow.save("a" * 5000)

    @pytest.mark.parametrize("device", ["foo", "cuda:99", None, []])
    def test_a_device_that_is_not_here(self, folder: Path, device) -> None:
        with pytest.raises(ConfigError, match=r"device .*; give one that is here, such as 'cpu'"):
            load(folder, device=device)


class TestPickles:
    @pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl", "pytorch_model.bin"])
    def test_a_pickle_by_name(self, tmp_path: Path, name: str) -> None:
        torch.save({}, tmp_path / name)
        with pytest.raises(ModelFileError, match=r"pickles are not read: they can run code\. Save the density with"):
            load(tmp_path / name)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickle_in_disguise(self, folder: Path, zipped: bool) -> None:
        torch.save({"w": torch.zeros(3)}, folder / "model.safetensors", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ModelFileError, match="pickles are not read: they can run code"):
            load(folder)


class TestWriting:
    def test_a_full_disk_leaves_no_new_folder(self, flow: NSF, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match=r"cannot be saved.*nothing was written"), full_disk():
            flow.save(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_leaves_the_old_model(self, flow: NSF, folder: Path) -> None:
        with pytest.raises(ModelFileError, match="cannot be saved"), full_disk():
            flow.save(folder)
        assert sorted(f.name for f in folder.iterdir()) == ["model.json", "model.safetensors"]
        assert isinstance(load(folder), NSF)

    def test_a_file_in_the_way(self, flow: NSF, tmp_path: Path) -> None:
        (tmp_path / "model").write_text("mine")
        with pytest.raises(ModelFileError, match="cannot be saved in"):
            flow.save(tmp_path / "model")
        assert (tmp_path / "model").read_text() == "mine"

    def test_values_that_are_not_json(self, flow: NSF, tmp_path: Path) -> None:
        flow.provenance = {"when": object()}
        with pytest.raises(ModelFileError, match="not plain JSON values"):
            flow.save(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """A limit on the size of files fails as a full disk does: in the middle of writing.

    It holds for the whole process, so for no longer than the block: the test runner writes files, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
