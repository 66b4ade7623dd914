"""Draws in a store: the same bytes for the same seed, whoever draws them, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sciflow as sf
from sciflow.data.lock import writing
from sciflow.errors import ConfigError, RunError, SciflowError, ShapeError, StoreError
from sciflow.inspection import describe
from sciflow.model_file import weights_hash
from sciflow.scoring.distributed import sample_on_ray
from sciflow.scoring.drawing import Drawing
from sciflow.scoring.fingerprint import fingerprint
from sciflow.scoring.samples import samples_as_dataset, write_samples

COMMAND = [sys.executable, "-m", "sciflow.cli", "sample"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Stepping(sf.flows.NSF):
    """A flow that takes options, as the samplers of diffusion models do."""

    family = "stepping"

    def _sample(self, n, context, generator, *, num_steps=1, path=False, **others):
        if others:
            raise ConfigError(f"unknown option {next(iter(others))}; did you mean num_steps?")
        draws = super()._sample(n, context, generator) + num_steps
        return torch.stack([draws, draws]) if path else draws


class Spy(sf.flows.NSF):
    """Counts its draws, and may be stopped at one of them."""

    stop_at: int | None = None

    def sample(self, n, *rest, **named):
        if n:
            self.seen = [*getattr(self, "seen", []), n]
            if len(self.seen) == self.stop_at:
                self.stop_at = None
                raise KeyboardInterrupt
        return super().sample(n, *rest, **named)


def spied(kind: type[sf.flows.NSF] = Spy, **arguments) -> sf.flows.NSF:
    density = kind((2,), **{"num_transforms": 1, "hidden_features": (8,), "seed": 0} | arguments)
    # As if it had been trained: a new one is the identity, whatever its context.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return density


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A density of a table, with units."""
    folder = tmp_path_factory.mktemp("model")
    rows = np.random.default_rng(0).normal(size=(300, 2)).astype("float32")
    table = xr.Dataset({"t2m": ("time", rows[:, 0], {"units": "K"}), "u/v": ("time", rows[:, 1])})
    store = sf.shard(table, folder / "rows.zarr", sample=["time"], progress=False)
    density = sf.flows.NSF(store.event_shape, num_transforms=1, hidden_features=(8,), seed=0)
    sf.fit(density, store, max_steps=5)
    return density.save(folder / "model")


@pytest.fixture(scope="module")
def density(model) -> sf.Density:
    return sf.load(model)


def contents(folder: Path) -> dict[str, str]:
    """Every file with its hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def opened(path: Path | str) -> xr.Dataset:
    return xr.open_zarr(path).load()


class TestDraws:
    def test_are_those_of_the_density_with_a_seed_of_its_own_for_every_block(self, density, tmp_path):
        drawn = opened(write_samples(density, 10, tmp_path / "out.zarr", seed=3, block_rows=4))
        seeds = [int(np.random.SeedSequence([3, number]).generate_state(1)[0]) for number in range(3)]
        rows = torch.cat([density.sample(n, seed=seed) for n, seed in zip((4, 4, 2), seeds, strict=True)])
        xr.testing.assert_equal(drawn, samples_as_dataset(density, rows))

    def test_have_the_variables_of_the_data(self, density, tmp_path, capsys):
        drawn = opened(write_samples(density, 5, tmp_path / "out.zarr"))
        # An array is a folder, whose name has no slash.
        assert {name: array.dims for name, array in drawn.items()} == {"t2m": ("sample",), "u_v": ("sample",)}
        assert drawn.t2m.attrs == {"units": "K"}
        assert drawn.u_v.attrs["long_name"] == "u/v"
        assert drawn.sample.values.tolist() == [0, 1, 2, 3, 4]
        describe(tmp_path / "out.zarr")
        assert capsys.readouterr().out.startswith("samples ")

    def test_say_what_they_were_drawn_from_and_how(self, model, density, tmp_path):
        attributes = opened(write_samples(density, 5, tmp_path / "out.zarr", seed=7)).attrs
        weights = json.loads((model / "model.json").read_text())["weights"]["sha256"]
        assert attributes["model"] == weights == weights_hash(density)
        assert (attributes["n"], attributes["seed"], attributes["device"]) == (5, 7, "cpu")
        assert attributes["written_by"] == f"sciflow {sf.__version__}, torch {torch.__version__}"

    def test_go_to_netcdf_as_they_are(self, density, tmp_path):
        drawn = opened(write_samples(density, 5, tmp_path / "out.zarr"))
        drawn.to_netcdf(tmp_path / "out.nc")
        xr.testing.assert_identical(xr.open_dataset(tmp_path / "out.nc").load(), drawn)

    def test_open_without_a_word(self, density, tmp_path, recwarn):
        opened(write_samples(density, 5, tmp_path / "out.zarr"))
        assert not recwarn.list

    def test_are_as_wide_as_the_density(self, tmp_path):
        assert opened(write_samples(spied().double(), 5, tmp_path / "out.zarr")).x.dtype == "float64"

    def test_of_fields_are_fields(self, tmp_path):
        glow = sf.flows.Glow((2, 4, 4), num_transforms=1, seed=0)
        drawn = opened(write_samples(glow, 7, tmp_path / "out.zarr", block_rows=3))
        assert drawn.x.shape == (7, 2, 4, 4)
        assert bool(np.isfinite(drawn.x).all())

    def test_do_not_depend_on_threads_nor_on_the_order_of_blocks(self, density, tmp_path):
        whole = write_samples(density, 100, tmp_path / "whole.zarr", block_rows=7)
        torch.set_num_threads(2)
        job = Drawing.of(density, 100, str(tmp_path / "other.zarr"), block_rows=7)
        for number in reversed(job.begin(density, overwrite=False)):
            job.draw(density, number)
        assert torch.get_num_threads() == 2
        job.finish()
        assert contents(tmp_path / "other.zarr") == contents(whole)

    def test_of_another_seed_are_others(self, density, tmp_path):
        first, second = (opened(write_samples(density, 50, tmp_path / f"{s}.zarr", seed=s)) for s in (0, 1))
        assert not np.intersect1d(first.t2m, second.t2m).size

    def test_do_not_depend_on_the_mode_of_the_density_which_keeps_it(self, tmp_path):
        density = spied().train()
        drawn = write_samples(density, 5, tmp_path / "train.zarr")
        assert density.training
        assert contents(drawn) == contents(write_samples(density.eval(), 5, tmp_path / "eval.zarr"))

    def test_depend_on_nothing_but_the_seed(self, density, tmp_path):
        torch.manual_seed(1)
        first = write_samples(density, 50, tmp_path / "first.zarr")
        torch.manual_seed(2)
        assert contents(write_samples(density, 50, tmp_path / "second.zarr")) == contents(first)


class TestBlocks:
    def test_bound_what_is_drawn_at_a_time(self, tmp_path):
        density = spied()
        write_samples(density, 10, tmp_path / "out.zarr", block_rows=4)
        assert density.seen == [4, 4, 2]

    def test_are_shards_of_whole_chunks(self, density, tmp_path):
        import zarr

        path = write_samples(density, 10, tmp_path / "out.zarr", block_rows=4)
        for _, array in zarr.open_group(path, mode="r").arrays():
            assert array.shards == (4,)
            assert array.chunks == (4,)
        assert sorted(file.name for file in (path / "t2m" / "c").iterdir()) == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("event_shape", "rows", "chunk_rows"),
        [((2,), 65_536, 65_536), ((43,), 32_768, 4_096), ((3, 64, 64), 128, 16), ((3, 1024, 1024), 1, 1)],
    )
    def test_hold_65536_draws_or_8_mib_of_them_in_chunks_of_a_mib(self, event_shape, rows, chunk_rows):
        density = sf.flows.NSF((2,), num_transforms=1, hidden_features=(8,))
        density.event_shape = torch.Size(event_shape)
        density.sample = lambda n, *_, **__: torch.zeros(n, *event_shape)
        job = Drawing.of(density, 10**6, "out.zarr")
        assert (job.block_rows, job.chunk_rows) == (rows, chunk_rows)
        assert len(job) == -(-(10**6) // rows)

    @pytest.mark.parametrize(("n", "most"), [(10, 4), (10, 10), (10, 11), (1, 5), (500_000, 300_007), (300_007, 10**9)])
    def test_have_no_more_draws_than_was_said(self, n, most):
        job = Drawing.of(spied(), n, "out.zarr", block_rows=most)
        assert min(n, job.block_rows) <= most
        assert job.block_rows % job.chunk_rows == 0
        assert len(job) == -(-n // min(n, most))

    def test_are_no_more_than_files_can_be(self):
        with pytest.raises(
            ConfigError, match=r"^n 1,000,000,000,000,000: .* draw fewer, or more at a time \(block_rows"
        ):
            Drawing.of(spied(), 10**15, "out.zarr")

    def test_of_more_than_memory_holds_are_told(self, tmp_path, monkeypatch):
        density = spied()
        original = density.sample

        def sample(n, *rest, **named):
            return torch.zeros(1 << 60) if n else original(n, *rest, **named)

        monkeypatch.setattr(density, "sample", sample)
        with pytest.raises(RunError, match="5 draws at a time do not fit into memory: lower block_rows"):
            write_samples(density, 5, tmp_path / "out.zarr")


class TestContext:
    @pytest.fixture
    def conditional(self) -> sf.Density:
        return spied(sf.flows.NSF, context_shape=(2,))

    def test_is_one_for_all_draws(self, conditional, tmp_path):
        paths = [
            write_samples(conditional, 9, tmp_path / f"{number}.zarr", context=context)
            for number, context in enumerate(([0.5, 12], torch.tensor([0.5, 12.0]), np.array([[0.5, 12]])))
        ]
        assert contents(paths[0]) == contents(paths[1]) == contents(paths[2])
        assert json.loads(opened(paths[0]).attrs["context"]) == [0.5, 12.0]
        other = write_samples(conditional, 9, tmp_path / "other.zarr", context=[0.5, -12])
        assert not np.array_equal(opened(other).x, opened(paths[0]).x)

    def test_may_have_names(self, tmp_path):
        density = spied(sf.flows.NSF, context_shape={"place": (2,), "height": (1,)})
        path = write_samples(density, 3, tmp_path / "out.zarr", context={"height": [5], "place": [1, 2]})
        assert json.loads(opened(path).attrs["context"]) == {"place": [1, 2], "height": [5]}

    def test_that_is_missing_or_none_or_several_is_told(self, conditional, tmp_path):
        for density, context in ((conditional, None), (conditional, [[1, 2], [3, 4]]), (spied(), [1, 2])):
            with pytest.raises(ShapeError, match="context"):
                write_samples(density, 3, tmp_path / "out.zarr", context=context)
        assert not list(tmp_path.iterdir())


class TestOptions:
    def test_are_those_of_the_densitys_sampler(self, tmp_path):
        density = spied(Stepping)
        one, five = (
            opened(write_samples(density, 9, tmp_path / f"{steps}.zarr", num_steps=steps, block_rows=4))
            for steps in (1, 5)
        )
        np.testing.assert_allclose(five.x, one.x + 4, rtol=1e-5)
        assert json.loads(five.attrs["options"]) == {"num_steps": 5}

    def test_the_sampler_shows_its_steps_only_where_there_is_one_block(self, tmp_path):
        shown = []

        class Showing(Spy):
            def sample(self, n, context=None, seed=None, *, progress=True):
                shown.append(progress)
                return super().sample(n, context, seed)

        for block_rows, progress, expected in (
            (4, True, [False] * 4),
            (9, True, [False, True]),
            (9, False, [False] * 2),
        ):
            write_samples(
                spied(Showing), 9, tmp_path / "out.zarr", block_rows=block_rows, progress=progress, overwrite=True
            )
            assert shown == expected
            shown.clear()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"num_step": 5}, "unknown option num_step; did you mean num_steps"),
            ({"generator": 5}, "option generator: not one of a sampler"),
            ({"path": True}, "^path: one event a draw can be written"),
            ({"num_steps": 2, "path": True}, "^path: one event a draw can be written"),
        ],
    )
    def test_that_do_not_fit_are_told_before_anything_is_written(self, options, words, tmp_path):
        with pytest.raises(ConfigError, match=words):
            write_samples(spied(Stepping), 9, tmp_path / "out.zarr", **options)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 1e6}, {"seed": -1}, {"seed": "0"}, {"block_rows": 0}], ids=str)
    def test_numbers_out_of_range_are_told(self, wrong, density, tmp_path):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} .*: a whole number expected"):
            write_samples(**{"density": density, "n": 3, "out": tmp_path / "out.zarr", **wrong})


def diffusion(seed: int = 0) -> sf.diffusion.Diffusion:
    density = sf.diffusion.Diffusion((40,), network={"mlp": {"hidden_features": (8,)}}, seed=seed)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return density


def draw_guided(given: sf.diffusion.Guidance, out: Path, n: int = 2, **how) -> np.ndarray:
    return opened(write_samples(diffusion(), n, out, num_steps=2, guidance=given, **how)).x.values


class TestGuidance:
    """What is there already is taken for the same only where the guidance is, in every digit."""

    @pytest.fixture
    def known(self) -> torch.Tensor:
        """Of which ``repr`` shows neither all elements nor all digits."""
        return torch.arange(1200.0).reshape(30, 40) / 7

    def test_that_is_the_same_is_known_again(self, known, tmp_path):
        draw_guided(sf.diffusion.Inpainting(known), tmp_path / "out.zarr", 30)
        again = {"num_steps": 2, "guidance": sf.diffusion.Inpainting(known.clone())}
        job = Drawing.of(diffusion(), 30, tmp_path / "out.zarr", options=again)
        assert job.begin(diffusion(), overwrite=False) is None

    def test_that_differs_anywhere_is_another(self, known, tmp_path):
        other = known.clone()
        other[15, 20] *= 1 + 1e-6
        draw_guided(sf.diffusion.Inpainting(known), tmp_path / "out.zarr", 30)
        with pytest.raises(StoreError, match="already there, with other contents"):
            draw_guided(sf.diffusion.Inpainting(other), tmp_path / "out.zarr", 30)

    def test_by_other_weights_is_another(self, tmp_path):
        draw_guided(sf.diffusion.Autoguidance(diffusion(1)), tmp_path / "out.zarr")
        draw_guided(sf.diffusion.Autoguidance(diffusion(1)), tmp_path / "out.zarr")
        with pytest.raises(StoreError, match="already there, with other contents"):
            draw_guided(sf.diffusion.Autoguidance(diffusion(2)), tmp_path / "out.zarr")

    def test_by_a_function_is_drawn_but_never_known_again(self, tmp_path):
        total = sf.diffusion.Observation(lambda x: x.sum(-1), value=4.0, std=0.1)
        first = draw_guided(total, tmp_path / "out.zarr")
        with pytest.raises(
            StoreError, match="guidance holds a function or an object of your own, so it may be another"
        ):
            draw_guided(total, tmp_path / "out.zarr")
        np.testing.assert_array_equal(draw_guided(total, tmp_path / "out.zarr", overwrite=True), first)

    def test_by_a_function_begins_anew_after_an_interruption(self, tmp_path):
        total = sf.diffusion.Observation(lambda x: x.sum(-1), value=4.0, std=0.1)
        how = {"block_rows": 2, "options": {"num_steps": 2, "guidance": total}}
        job = Drawing.of(diffusion(), 4, tmp_path / "out.zarr", **how)
        job.draw(diffusion(), job.begin(diffusion(), overwrite=False)[0])
        assert Drawing.of(diffusion(), 4, tmp_path / "out.zarr", **how).begin(diffusion(), overwrite=False) == [0, 1]

    def test_of_rows_fits_every_block_or_is_refused_before_anything_is_written(self, known, tmp_path):
        given = sf.diffusion.Inpainting(known[:4])
        with pytest.raises(ShapeError, match=r"n and block_rows must be multiples .* a block has 2 draws"):
            draw_guided(given, tmp_path / "out.zarr", 8, block_rows=2)
        assert not list(tmp_path.iterdir())
        drawn = draw_guided(given, tmp_path / "out.zarr", 8, block_rows=4)
        np.testing.assert_allclose(drawn, np.tile(known[:4], (2, 1)), atol=0.1)


class TestFingerprint:
    def test_tells_values_apart_by_kind_shape_and_every_digit(self):
        x = torch.arange(6.0)
        values = [
            None, True, 1, 1.0, "1", b"1", [1], [[1]], {"a": 1}, {"a": 2}, {1: "a"}, float("nan"), np.float64(1),
            np.ones(1), x, x.double(), x.bfloat16(), x.reshape(2, 3), x + 1j, x[0], x.nextafter(x + 1), x.numpy(),
            sf.diffusion.samplers.DDIM(), sf.diffusion.samplers.DDIM(eta=1.0), sf.diffusion.schedule("vp"),
            spied(), spied(seed=1), spied().double(), spied(Stepping), diffusion(), diffusion(1),
        ]  # fmt: skip
        hashes = [fingerprint(value) for value in values]
        assert None not in hashes
        assert len(set(hashes)) == len(values)
        assert fingerprint(x[::2]) == fingerprint(x[::2].clone())
        assert fingerprint(diffusion()) == fingerprint(diffusion())

    @pytest.mark.parametrize(
        "value", [len, spied, Spy, object(), torch.nn.Linear(2, 2), np.array([object()])], ids=repr
    )
    def test_of_what_a_function_or_an_object_of_ones_own_does_there_is_none(self, value):
        assert fingerprint(value) is fingerprint({"a": [1, value]}) is None


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


def flat(url: str) -> dict[str, str]:
    """Every object under a URL of fsspec's memory, with its hash."""
    files = fsspec.filesystem("memory")
    root = fsspec.core.url_to_fs(url)[1]
    return {
        name.removeprefix(f"{root}/"): hashlib.sha256(files.cat_file(name)).hexdigest() for name in files.find(root)
    }


class TestOnAUrl:
    @pytest.fixture
    def out(self):
        yield "memory://draws/out.zarr"
        fsspec.filesystem("memory").rm("/draws", recursive=True)

    def test_the_output_is_that_on_a_file_system(self, out, density, tmp_path):
        assert write_samples(density, 10, out, block_rows=4) == out
        assert flat(out) == contents(write_samples(density, 10, tmp_path / "out.zarr", block_rows=4))
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
        assert flat(out) == contents(write_samples(density, 10, tmp_path / "plain.zarr", block_rows=2))

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
        before = flat(out)
        write_samples(density, 4, out, block_rows=2)
        assert density.seen == [2, 2]
        write_samples(density, 4, out, block_rows=2, overwrite=True)
        assert density.seen == [2, 2, 2, 2]
        assert flat(out) == before


class TestWhoDraws:
    """A single block is drawn in this process; more of them on Ray."""

    @pytest.fixture
    def on_ray(self, monkeypatch) -> list[int]:
        """How many blocks were given to Ray, each time."""
        given = []

        def each_on_ray(work: Callable, items: list, *_) -> None:
            given.append(len(items))
            for item in items:
                work(item)

        monkeypatch.setattr("sciflow.scoring.distributed._each_on_ray", each_on_ray)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return given

    def test_depends_on_what_is_left_to_draw(self, on_ray, model, density, tmp_path):
        sample_on_ray(model, 10, tmp_path / "one.zarr")
        assert on_ray == []
        sample_on_ray(model, 10, tmp_path / "three.zarr", block_rows=4)
        assert on_ray == [3]
        sample_on_ray(model, 10, tmp_path / "local.zarr", block_rows=4, local=True)
        assert on_ray == [3]
        sample_on_ray(model, 10, tmp_path / "cluster.zarr", address="auto")
        assert on_ray == [3, 1]
        job = Drawing.of(density, 10, str(tmp_path / "left.zarr"), block_rows=4)
        for number in job.begin(density, overwrite=False)[:2]:
            job.draw(density, number)
        sample_on_ray(model, 10, tmp_path / "left.zarr", block_rows=4)
        assert on_ray == [3, 1]
        assert (
            contents(tmp_path / "three.zarr") == contents(tmp_path / "local.zarr") == contents(tmp_path / "left.zarr")
        )

    def test_another_model_in_the_place_of_the_first_is_told(self, on_ray, model, tmp_path, monkeypatch):
        shutil.copytree(model, tmp_path / "model")
        begin = Drawing.begin

        def trained_anew(self, *arguments):
            other = sf.load(tmp_path / "model")
            with torch.no_grad():
                next(other.parameters()).add_(1)
            other.save(tmp_path / "model")
            return begin(self, *arguments)

        monkeypatch.setattr(Drawing, "begin", trained_anew)
        with pytest.raises(RunError, match="another model has taken its place meanwhile"):
            sample_on_ray(tmp_path / "model", 10, tmp_path / "out.zarr", block_rows=4)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_the_bytes_are_those_of_this_process(self, model, density, tmp_path):
        out = sample_on_ray(model, 50, tmp_path / "out.zarr", block_rows=3, seed=5)
        assert contents(Path(out)) == contents(write_samples(density, 50, tmp_path / "here.zarr", block_rows=3, seed=5))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["here.zarr", "out.zarr"]

    def test_an_error_of_a_task_is_the_same_error_here(self, model, tmp_path, monkeypatch):
        out = tmp_path / "out.zarr"

        def begin(self, *arguments):
            waiting = original(self, *arguments)
            shutil.rmtree(f"{out}.partial")
            return waiting

        original = Drawing.begin
        monkeypatch.setattr(Drawing, "begin", begin)
        with pytest.raises(SciflowError, match="cannot be written: "):
            sample_on_ray(model, 50, out, block_rows=3)

    def test_a_cluster_without_a_gpu_is_told(self, model, tmp_path):
        with pytest.raises(ConfigError, match="the Ray cluster has no GPU"):
            sample_on_ray(model, 50, tmp_path / "out.zarr", block_rows=3, use_gpu=True)
        assert not list(tmp_path.iterdir())


def offspring(pid: int) -> dict[int, str]:
    """Processes that a process has started, and those that they have, with their titles."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found |= {int(entry.name): title, **offspring(int(entry.name))}
        except (OSError, IndexError):
            continue  # it has ended meanwhile
    return found


@pytest.mark.ray
class TestKilled:
    def test_worker_and_driver_the_same_command_ends_with_the_same_bytes(self, model, density, tmp_path):
        n, out = 1200, tmp_path / "out.zarr"
        blocks = Path(f"{out}.partial", "u_v", "c")  # of the variable that is written last: these blocks are whole
        # One draw a block, to be slow enough to be killed.
        command = [*COMMAND, str(model), "--n", str(n), "--out", str(out), "--block-rows", "1", "--quiet"]

        def wait_for(count: int) -> None:
            deadline = time.monotonic() + 120
            while len(list(blocks.glob("[0-9]*"))) < count:
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)

        child = subprocess.Popen(command, env=ENVIRONMENT)
        wait_for(5)
        # Between two tasks a worker has another title.
        while not (workers := [p for p, title in offspring(child.pid).items() if title.startswith("ray::task")]):
            assert child.poll() is None
        os.kill(workers[0], signal.SIGKILL)
        wait_for(60)
        child.kill()
        child.wait()
        assert not out.exists()
        time.sleep(1)  # Ray's workers see that their driver is gone.
        before = {path.name: path.stat().st_mtime_ns for path in blocks.iterdir() if path.name.isdigit()}
        assert 60 <= len(before) < n
        assert subprocess.run(command, env=ENVIRONMENT, timeout=120).returncode == 0
        # Nothing is drawn twice.
        after = {name: (out / "u_v" / "c" / name).stat().st_mtime_ns for name in before}
        assert after == before
        assert contents(out) == contents(write_samples(density, n, tmp_path / "unbroken.zarr", block_rows=1))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "unbroken.zarr"]


def test_a_table_is_drawn_as_a_table(tmp_path):
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 2)), columns=["sample", "v"])
    fitted = sf.fit(spied(sf.flows.NSF), rows, max_steps=2).density
    # What counts the draws has the name of its first column.
    assert set(opened(write_samples(fitted, 3, tmp_path / "out.zarr"))) == {"sample_", "v"}
