"""The demo does the main job, on real data, and holds what the README says of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "workflows" / "demo.py"


@pytest.mark.ray
def test_the_demo(tmp_path):
    pytest.importorskip("sklearn")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, DEMO], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size > 100_000
    figures = {
        name: [float(number) for number in re.findall(r"-?\d+\.\d+", done.stdout.partition(name)[2].partition("\n")[0])]
        for name in ("neural spline flow", "full-covariance Gaussian", "5 nearest neighbours")
    }
    log_prob, _, auroc = figures["neural spline flow"]
    assert log_prob > figures["full-covariance Gaussian"][0]
    assert auroc >= max(figures["full-covariance Gaussian"][-1], figures["5 nearest neighbours"][-1]) - 0.01
