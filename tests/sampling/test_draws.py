"""Draws in a store: the same bytes for the same seed, block by block, with any context and options."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from stored import contents
from untrained import Spy, Stepping, opened, spied

import sciflow as sf
from sciflow.errors import ConfigError, RunError, ShapeError
from sciflow.inspection import describe
from sciflow.model_file import weights_hash
from sciflow.scoring.drawing import Drawing
from sciflow.scoring.samples import samples_as_dataset, write_samples


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


def test_a_table_is_drawn_as_a_table(tmp_path):
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 2)), columns=["sample", "v"])
    fitted = sf.fit(spied(sf.flows.NSF), rows, max_steps=2).density
    # What counts the draws has the name of its first column.
    assert set(opened(write_samples(fitted, 3, tmp_path / "out.zarr"))) == {"sample_", "v"}
