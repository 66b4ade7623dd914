"""Where draws go: whole or not there, never in the place of something else, and going on after an interruption."""

from __future__ import annotations

import shutil

import fsspec
import pytest
import xarray as xr
from stored import contents, contents_at
from untrained import Stepping, opened, spied

from sciflow.data.lock import writing
from sciflow.errors import ConfigError, RunError, StoreError
from sciflow.scoring.distributed import sample_on_ray
from sciflow.scoring.drawing import Drawing
from sciflow.scoring.samples import write_samples


class TestInterrupted:
    def test_it_goes_on_with_the_blocks_that_are_missing(self, tmp_path):
        density, out = spied(), tmp_path / "out.zarr"
        density.stop_at = 4
        with pytest.raises(KeyboardInterrupt):
            write_samples(density, 10, out, block_rows=2)
        assert [path.name for path in tmp_path.iterdir()] == ["out.zarr.partial"]
        density.seen = []
        write_samples(density, 10, out, block_rows=2)
        assert density.seen == [2, 2]
        assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
        assert contents(out) == contents(write_samples(density, 10, tmp_path / "unbroken.zarr", block_rows=2))

    def test_a_block_that_was_cut_short_is_drawn_again(self, tmp_path):
        density, out = spied(), tmp_path / "out.zarr"
        job = Drawing.of(density, 10, str(out), block_rows=2)
        for number in job.begin(density, overwrite=False):
            job.draw(density, number)
        folder = tmp_path / "out.zarr.partial" / "x" / "c"
        (folder / "1" / "0").write_bytes((folder / "1" / "0").read_bytes()[:-5])
        (folder / "3" / "0").unlink()
        (folder / "4" / "0.partial").write_bytes(b"half")
        with pytest.raises(RunError, match="block 1 is not whole"):
            job.finish()
        density.seen = []
        write_samples(density, 10, out, block_rows=2)
        assert len(density.seen) == 2
        assert contents(out) == contents(write_samples(density, 10, tmp_path / "unbroken.zarr", block_rows=2))

    def test_the_end_is_made_again_after_a_crash_at_any_point_of_it(self, tmp_path, monkeypatch):
        density = spied()
        plain = contents(write_samples(density, 10, tmp_path / "plain.zarr", block_rows=2))

        def crash(*_):
            raise KeyboardInterrupt

        for number, step in enumerate(("consolidate", "put_in_place")):
            out = tmp_path / f"{number}.zarr"
            with monkeypatch.context() as patch:
                patch.setattr(f"sciflow.scoring.output.{step}", crash)
                with pytest.raises(KeyboardInterrupt):
                    write_samples(density, 10, out, block_rows=2)
            density.seen = []
            assert contents(write_samples(density, 10, out, block_rows=2)) == plain
            assert density.seen == []

    @pytest.mark.parametrize(
        "other",
        [
            {"seed": 1},
            {"n": 11},
            {"block_rows": 3},
            {"options": {"num_steps": 2}},
            {"density": spied(Stepping, seed=1)},
        ],
        ids=str,
    )
    def test_what_is_there_of_another_drawing_is_not_mixed_in(self, other, tmp_path):
        out, how = tmp_path / "out.zarr", {"density": spied(Stepping), "n": 10, "block_rows": 2}
        others = {**how, **other, "out": str(out)}
        job, density = Drawing.of(**others), others["density"]
        for number in job.begin(density, overwrite=False)[:3]:
            job.draw(density, number)
        write_samples(out=out, **how)
        assert contents(out) == contents(write_samples(out=tmp_path / "plain.zarr", **how))

    def test_a_full_disk_is_an_error_that_keeps_what_is_drawn(self, tmp_path, monkeypatch):
        import sciflow.scoring.drawing as module

        density, out, written = spied(), tmp_path / "out.zarr", []
        original = module.write_file

        def write_file(*arguments):
            written.append(arguments)
            if len(written) == 5:
                raise OSError(28, "No space left on device")
            original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_file", write_file)
            with pytest.raises(RunError, match="No space left on device; what is done is kept"):
                write_samples(density, 10, out, block_rows=2)
        assert not out.exists()
        density.seen = []
        write_samples(density, 10, out, block_rows=2)
        assert density.seen == [2, 2, 2]


class TestTheOutput:
    def test_that_is_done_is_left_as_it_is(self, density, tmp_path):
        out = write_samples(density, 10, tmp_path / "out.zarr")
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        write_samples(density, 10, out)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
        write_samples(density, 10, out, overwrite=True)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} != before

    def test_of_another_drawing_is_not_replaced_unasked(self, density, tmp_path):
        out = write_samples(density, 10, tmp_path / "out.zarr")
        before = contents(out)
        with pytest.raises(StoreError, match="already there, with other contents"):
            write_samples(density, 11, out)
        assert contents(out) == before
        write_samples(density, 11, out, overwrite=True)
        assert opened(out).sizes == {"sample": 11}
        assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]

    def test_that_is_something_else_is_never_replaced(self, density, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "thesis.tex").write_text("years")
        with pytest.raises(StoreError, match="something else is there, so it is not replaced"):
            write_samples(density, 10, tmp_path / "thesis", overwrite=True)
        assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years"

    def test_that_is_another_zarr_store_is_never_replaced(self, density, tmp_path):
        xr.Dataset({"years": ("time", [1.0, 2.0])}).to_zarr(tmp_path / "years.zarr", zarr_format=3, consolidated=False)
        before = contents(tmp_path / "years.zarr")
        with pytest.raises(StoreError, match="something else is there, so it is not replaced"):
            write_samples(density, 10, tmp_path / "years.zarr", overwrite=True)
        assert contents(tmp_path / "years.zarr") == before

    def test_is_never_what_the_run_was_trained_on(self, model, tmp_path):
        shutil.copytree(model, tmp_path / "run" / "model")
        store = model.parent / "rows.zarr"
        (tmp_path / "run" / "workflow.yaml").write_text(f"name: run\ndata: {{store: {store}}}\n")
        with pytest.raises(StoreError, match="is read, or lies in it or around it"):
            sample_on_ray(tmp_path / "run", 5, store, overwrite=True)

    @pytest.mark.parametrize("out", [None, 3, "", ".", "..", "zzz://a/b.zarr", "memory://"])
    def test_has_a_place_that_can_be_written(self, out, density, model):
        for draw, drawn in ((write_samples, density), (sample_on_ray, model)):
            with pytest.raises(ConfigError, match=r"^out "):
                draw(drawn, 5, out)

    @pytest.mark.parametrize("how", ["{}/out.zarr/", "file://{}/out.zarr"])
    def test_has_its_place_however_that_is_written(self, how, density, tmp_path):
        assert write_samples(density, 5, how.format(tmp_path)) == tmp_path / "out.zarr"
        assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]

    def test_is_not_begun_where_there_is_no_gpu(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        for how in ({"local": True}, {}, {"block_rows": 2}):
            with pytest.raises(ConfigError, match="has no GPU: leave it out"):
                sample_on_ray(model, 5, tmp_path / "out.zarr", use_gpu=True, **how)
        assert not list(tmp_path.iterdir())

    def test_is_written_by_one_at_a_time(self, density, tmp_path):
        with writing(tmp_path / "out.zarr"), pytest.raises(StoreError, match="another process is writing it"):
            write_samples(density, 10, tmp_path / "out.zarr")

    def test_is_never_the_model_but_may_lie_in_its_run(self, model, tmp_path):
        shutil.copytree(model, tmp_path / "run" / "model")
        before = contents(tmp_path / "run")
        for out in ("run", "run/model", "run/model/draws.zarr"):
            with pytest.raises(StoreError, match="is read, or lies in it or around it"):
                sample_on_ray(tmp_path / "run", 5, tmp_path / out, overwrite=True)
        assert contents(tmp_path / "run") == before
        sample_on_ray(tmp_path / "run", 5, tmp_path / "run" / "draws.zarr")


class TestOnAUrl:
    @pytest.fixture
    def out(self):
        yield "memory://draws/out.zarr"
        fsspec.filesystem("memory").rm("/draws", recursive=True)

    def test_the_output_is_that_on_a_file_system(self, out, density, tmp_path):
        assert write_samples(density, 10, out, block_rows=4) == out
        assert contents_at(out) == contents(write_samples(density, 10, tmp_path / "out.zarr", block_rows=4))
        assert fsspec.filesystem("memory").ls("/draws", detail=False) == ["/draws/out.zarr"]

    def test_one_that_was_not_finished_says_so_and_goes_on(self, out, tmp_path):
        density = spied()
        density.stop_at = 3
        with pytest.raises(KeyboardInterrupt):
            write_samples(density, 10, out, block_rows=2)
        assert "unfinished" in xr.open_zarr(out, consolidated=False).attrs
        with pytest.raises(StoreError, match="already there, with other contents"):
            write_samples(density, 9, out, block_rows=2)
        density.seen = []
        write_samples(density, 10, out, block_rows=2)
        assert density.seen == [2, 2, 2]
        assert contents_at(out) == contents(write_samples(density, 10, tmp_path / "plain.zarr", block_rows=2))

    def test_one_that_was_not_even_laid_out_is_begun_anew(self, out, density, monkeypatch):
        import zarr

        def killed(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(zarr.Group, "create_array", killed)
            with pytest.raises(KeyboardInterrupt):
                write_samples(density, 10, out)
        assert opened(write_samples(density, 10, out)).sizes == {"sample": 10}

    def test_one_that_is_done_is_drawn_again_only_when_asked_for(self, out):
        density = spied()
        write_samples(density, 4, out, block_rows=2)
        before = contents_at(out)
        write_samples(density, 4, out, block_rows=2)
        assert density.seen == [2, 2]
        write_samples(density, 4, out, block_rows=2, overwrite=True)
        assert density.seen == [2, 2, 2, 2]
        assert contents_at(out) == before
