"""What the benchmarks share: modules of this repository that are in no package, and a word while they work."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def beside(path: str) -> ModuleType:
    """Import a file of the repository, such as ``"datasets/toys"``."""
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{path}.py")
        assert spec is not None
        assert spec.loader is not None
        # Dataclasses look their module up.
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def tell(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)
