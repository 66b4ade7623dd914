"""Draws by guidance are known again only where it is the same in every digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import Spy, Stepping, diffusion, opened, spied

import sciflow as sf
from sciflow.errors import ShapeError, StoreError
from sciflow.scoring.drawing import Drawing
from sciflow.scoring.fingerprint import fingerprint
from sciflow.scoring.samples import write_samples


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
        "value",
        [len, spied, Spy, object(), torch.nn.Linear(2, 2), np.array([object()])],
        ids=["builtin", "function", "class", "object", "module", "array of objects"],
    )
    def test_of_what_a_function_or_an_object_of_ones_own_does_there_is_none(self, value):
        assert fingerprint(value) is fingerprint({"a": [1, value]}) is None
