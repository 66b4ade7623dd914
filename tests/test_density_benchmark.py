"""The density benchmark: toys that are the densities they say, and downloads that are whole or refused."""

from __future__ import annotations

import hashlib
import http.server
import threading
from pathlib import Path

import density
import numpy as np
import pytest
import torch
import toys
import uci

import sciflow as sf

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("toy", toys.TOYS.values(), ids=lambda toy: toy.name)
class TestToys:
    def test_integrates_to_one(self, toy):
        # The midpoint rule; the step divides the squares' sides, so that it is exact for the checkerboard too.
        step = 0.05
        centres = np.arange(-toy.extent, toy.extent, step) + step / 2
        rows = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
        total = sum(np.exp(toy.log_prob(part)).sum() for part in np.array_split(rows, 20)) * step**2
        assert total == pytest.approx(1, abs=1e-5)

    def test_draws_are_of_the_density(self, toy):
        """Counts in the cells of a grid against the integral of the density over each."""
        draws, cells, fine = toy.sample(40_000, seed=3), 18, 6
        edges = np.linspace(-toy.extent, toy.extent, cells + 1)
        counts, _, _ = np.histogram2d(*draws.T, bins=[edges, edges])
        points = (np.arange(cells * fine) + 0.5) * 2 * toy.extent / (cells * fine) - toy.extent
        rows = np.stack(np.meshgrid(points, points, indexing="ij"), axis=-1).reshape(-1, 2)
        density = np.exp(toy.log_prob(rows)).reshape(cells, fine, cells, fine).mean((1, 3))
        expected = len(draws) * density * (edges[1] - edges[0]) ** 2
        busy = expected > 20
        chi_squared = ((counts - expected)[busy] ** 2 / expected[busy]).sum()
        assert abs(chi_squared - busy.sum()) < 5 * np.sqrt(2 * busy.sum())
        assert counts[expected == 0].sum() == 0

    def test_the_same_seed_gives_the_same_draws(self, toy):
        assert np.array_equal(toy.sample(10, seed=4), toy.sample(10, seed=4))
        assert not np.array_equal(toy.sample(10, seed=4), toy.sample(10, seed=5))


CONTENT = {
    "data.txt": b"".join(b"%d 2.5 %d.0\n" % (row, 10 * row) for row in range(8)),
    "index_features.txt": b"0\n1\n",
    "index_target.txt": b"2.000000000000000000e+00\n",
    **{f"index_train_{split}.txt": b"0\n1\n2\n3\n4\n5\n" for split in range(5)},
    **{f"index_test_{split}.txt": b"6.0e+00\n7.0e+00\n" for split in range(5)},
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that has ``energy``, and the checksums of what it has."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/sets/energy/data/")
            self.server.asked.append(name)
            content = self.server.files.get(name)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    checksums = "".join(f"{hashlib.sha256(content).hexdigest()}  energy/{name}\n" for name, content in CONTENT.items())
    (tmp_path / "uci.sha256").write_text(checksums)
    monkeypatch.setattr(uci, "HERE", tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.asked = dict(CONTENT), []
        running.url = f"http://127.0.0.1:{running.server_address[1]}/sets"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


class TestDownload:
    def test_a_set_is_downloaded_once(self, server, tmp_path):
        table = uci.load("energy", tmp_path / "cache", server.url)
        assert table.features[:2].tolist() == [[0.0, 2.5], [1.0, 2.5]]
        assert table.target[:, 0].tolist() == [10.0 * row for row in range(8)]
        assert [(len(train), test.tolist()) for train, test in table.splits] == [(6, [6, 7])] * 5
        assert sorted(server.asked) == sorted(CONTENT)
        uci.load("energy", tmp_path / "cache", server.url)
        assert len(server.asked) == len(CONTENT)

    def test_another_file_is_refused_and_not_kept(self, server, tmp_path):
        server.files["data.txt"] = CONTENT["data.txt"].replace(b"2.5", b"2.6")
        with pytest.raises(uci.DownloadError, match=r"/sets/energy/data/data.txt: SHA-256 \w{64}, not \w{64}"):
            uci.load("energy", tmp_path / "cache", server.url)
        assert not list(tmp_path.glob("cache/**/*data.txt"))

    def test_a_damaged_copy_is_told_by_its_path(self, server, tmp_path):
        uci.load("energy", tmp_path / "cache", server.url)
        path = tmp_path / "cache" / "energy" / "index_target.txt"
        path.write_bytes(b"1\n")
        with pytest.raises(uci.DownloadError, match=r"energy/index_target.txt: SHA-256 .* delete it"):
            uci.load("energy", tmp_path / "cache", server.url)

    def test_a_file_that_the_server_has_not(self, server, tmp_path):
        del server.files["index_test_3.txt"]
        with pytest.raises(uci.DownloadError, match=r"index_test_3.txt: the server answers 404"):
            uci.load("energy", tmp_path / "cache", server.url)

    def test_a_server_that_is_down(self, server, tmp_path):
        # A port that was free a moment ago, and on which nobody listens.
        with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
            port = other.server_address[1]
        with pytest.raises(uci.DownloadError, match=r"the server cannot be reached .*; with the files in .*energy"):
            uci.load("energy", tmp_path / "cache", f"http://127.0.0.1:{port}/sets")

    def test_a_name_that_is_none(self):
        with pytest.raises(ValueError, match=r"no set 'boston': one of concrete"):
            uci.load("boston")


class TestTheRealSets:
    @pytest.mark.parametrize("name", uci.NAMES)
    def test_are_those_described_where_they_are_at_hand(self, name):
        if not (uci.AT_HAND / name).is_dir():
            pytest.skip("the data do not lie beside the project")
        table = uci.load(name)
        assert table.target.shape == (len(table.features), 1)
        for train, test in table.splits:
            assert sorted([*train, *test]) == list(range(len(table.features)))

    def test_every_set_has_all_its_checksums(self):
        assert all(set(uci._checksums(name)) == set(CONTENT) for name in uci.NAMES)


def test_probabilities_of_the_cells_sum_to_one():
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(300, 1, generator=generator)
    counts = (5 + 2 * context + torch.randn(300, 1, generator=generator)).round()
    flow = sf.flows.NSF((1,), (1,), preprocess=["dequantize", "standardize"], num_transforms=2, seed=0)
    fitted = sf.fit(flow, counts, context=context, max_steps=30).density
    values = np.arange(-40.0, 50.0)[:, None]
    log_cells = density.log_cell(fitted, values, np.full_like(values, 0.7))
    assert np.isfinite(log_cells).all()
    assert np.exp(log_cells).sum() == pytest.approx(1, abs=1e-5)
    # In the middle of a cell that is narrow for the density, its probability is about the density there.
    middle = fitted.log_prob(np.array([[6.0]]), np.array([[0.7]])).item()
    assert log_cells[46] == pytest.approx(middle, abs=0.15)
