"""What a store, a run, scores or samples are, in a screenful: ``sciflow inspect``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sciflow.data.split import SPLITS
from sciflow.data.store import Split, Store, is_url, open_store
from sciflow.errors import StoreError
from sciflow.training.evaluate import Evaluation
from sciflow.training.metrics import read_metrics
from sciflow.training.run import Run

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["describe"]

MOST_ROWS = 12


def describe(path: str | Path) -> None:
    """Print what is known of a store, a run, a model, scores, samples or detections.

    Raises:
        StoreError: It is none of them.
    """
    console = Console(width=None if Console().is_terminal else 120)
    if not is_url(path) and (Path(path) / "workflow.yaml").exists():
        _describe_run(console, Run(Path(path).absolute()))
        return
    if not is_url(path) and (Path(path) / "model.json").exists():
        from sciflow.families import load

        console.print(f"model {path}: {load(path)!r}", markup=False, highlight=False)
        return
    if not is_url(path) and (Path(path) / "results.zarr").exists():
        path = Path(path) / "results.zarr"
    if not is_url(path) and Path(path).is_dir() and not (Path(path) / "zarr.json").exists():
        raise StoreError(f"{path}: neither a store (no zarr.json) nor a run (no workflow.yaml)")
    results = _results(path)
    if results is not None:
        _describe_results(console, path, results)
    else:
        _describe_store(console, open_store(path))


def _describe_store(console: Console, store: Store) -> None:
    layout = store.layout
    console.print(f"store {store.path}", markup=False, highlight=False, style="bold")
    axes = ", ".join(f"{name} {size}" for name, size in zip(layout.event_axes, layout.event_shape, strict=True))
    grid = ", ".join(f"{dim.name} {dim.size:,}" for dim in layout.sample_dims)
    facts = [
        ("event", f"{list(layout.event_shape)} ({axes}), {layout.dtype}"),
        ("counted over", grid + (f" = {layout.num_grid_events:,}" if len(layout.sample_dims) > 1 else "")),
        *(("split", f"{split.name}: {len(split):,} events in {_shards(split)}") for split in store.splits),
        ("shared out", _rule(store.attributes["split"], bool(layout.overlapping))),
        ("context", ", ".join(layout.context) or "none"),
        ("missing", _missing(store)),
        ("left out", f"{layout.num_grid_events - len(store):,} events"),
        ("fingerprint", store.fingerprint[:16]),
    ]
    if not is_url(store.path):
        size = sum(file.stat().st_size for file in Path(store.path).rglob("*") if file.is_file())
        raw = len(store) * layout.event_bytes
        facts.append(("on disk", f"{_bytes(size)} for {_bytes(raw)} of events"))
    _print_facts(console, facts)
    table = Table(title="training events", title_justify="left")
    for column in ("variable", "units", "mean", "deviation", "minimum", "maximum"):
        table.add_column(column, justify="left" if column in ("variable", "units") else "right")
    statistics = store.statistics
    for place, (variable, units) in enumerate(zip(layout.variables, layout.units, strict=True)):
        if place == MOST_ROWS:
            table.add_row(f"and {len(layout.variables) - MOST_ROWS} more")
            break
        mine = place if layout.has_variable_axis else slice(None)
        mean, variance = statistics.mean[mine], statistics.variance[mine]
        # Over all elements of the variable: the mean of variances, and the variance of means.
        deviation = float(np.sqrt(np.mean(variance) + np.var(mean)))
        low, high = statistics.minimum[mine].min(), statistics.maximum[mine].max()
        constant = " (constant)" if low == high else ""
        table.add_row(variable + constant, units, *(f"{v:.5g}" for v in (np.mean(mean), deviation, low, high)))
    console.print(table)


def _describe_run(console: Console, run: Run) -> None:
    workflow = run.workflow
    console.print(f"run {workflow.name}", markup=False, highlight=False, style="bold")
    facts = [("data", workflow.data.store), ("model", str(workflow.model))]
    if run.outcome is not None:
        fit = run.fit()
        facts += [
            ("state", f"ended after {fit.steps:,} steps ({fit.ended}); weights of step {fit.best_step:,}"),
            ("held out", f"{fit.validation}, {fit.validation.count:,} events"),
            ("density", repr(fit.density)),
            ("time", f"{fit.seconds:.0f} s"),
        ]
    else:
        records = read_metrics(run.folder / "metrics.jsonl")
        units = {"validation_log_prob": " nats", "validation_score": ""}
        found = [
            f"{record[name]:.3f}{unit} at step {record['step']:,}"
            for record in records
            for name, unit in units.items()
            if name in record
        ]
        facts.append(("state", f"not ended; step {records[-1]['step']:,}" if records else "not begun"))
        if found:
            facts.append(("held out", found[-1]))
    _print_facts(console, facts)


def _results(path: str | Path) -> xr.Dataset | None:
    """Scores, samples or detections, opened; None where it is something else, damaged perhaps."""
    import xarray as xr

    try:
        found = xr.open_zarr(str(path), consolidated=False, chunks=None)
    except Exception:  # Of many kinds; what is wrong is said where it is opened as a store.
        return None
    scores = "likelihood" in found.attrs and "log_prob" in found
    draws = "sample" in found.coords and all(array.dims[:1] == ("sample",) for array in found.data_vars.values())
    detections = {"score", "p_value", "flag", "status"} <= set(found.data_vars)
    return found if scores or draws or detections else None


def _describe_results(console: Console, path: str | Path, results: xr.Dataset) -> None:
    what = "scores" if "log_prob" in results else "detections" if "p_value" in results else "samples"
    console.print(f"{what} {path}", markup=False, highlight=False, style="bold")
    facts = [("dimensions", ", ".join(f"{name} {size:,}" for name, size in results.sizes.items()))]
    if what == "scores":
        facts.append(("likelihood", results.attrs["likelihood"]))
    if "unfinished" in results.attrs:
        command = "score" if what == "scores" else "sample"
        facts.append(("state", f"not ended: run sciflow {command} again"))
    if what == "scores":
        facts += _mean_log_prob(results)
    if what == "detections":
        judged = int(np.count_nonzero(results["status"].values >= 0))
        facts.append(("flagged", f"{int(np.count_nonzero(results['flag'].values)):,} of {judged:,} rows"))
        level = ("fdr", "method", "false_alarm_rate", "score", "calibration_rows")
        facts += [(name.replace("_", " "), str(results.attrs[name])) for name in level if name in results.attrs]
        facts.append(("stores", ", ".join(results.attrs["stores"][-MOST_ROWS:])))
    _print_facts(console, facts)
    table = Table()
    for column in ("variable", "units", "dimensions", "type", "meaning"):
        table.add_column(column)
    for place, (name, array) in enumerate(sorted(results.data_vars.items())):
        if place == MOST_ROWS:
            table.add_row(f"and {len(results.data_vars) - MOST_ROWS} more")
            break
        units, meaning = (str(array.attrs.get(key, "")) for key in ("units", "long_name"))
        table.add_row(str(name), units, ", ".join(map(str, array.dims)), str(array.dtype), meaning)
    console.print(table)


def _mean_log_prob(scores: xr.Dataset) -> list[tuple[str, str]]:
    """Of all events, and of those of each split where they have one."""
    values = scores["log_prob"].values.ravel().astype(np.float64)
    groups = {"mean log p": np.ones(len(values), bool)}
    if "split" in scores:
        codes = scores["split"].values.ravel()
        groups |= {f"  {name}": codes == code for code, name in enumerate(SPLITS)}
    facts = []
    for name, chosen in groups.items():
        mine = values[chosen & np.isfinite(values)]
        if len(mine):
            error = float(mine.std(ddof=1)) / math.sqrt(len(mine)) if len(mine) > 1 else 0.0
            impossible = int(np.isneginf(values[chosen]).sum())
            found = Evaluation(float(mine.mean()), error, len(mine), impossible)
            facts.append((name, f"{found}, {len(mine):,} events"))
    return facts


def _print_facts(console: Console, facts: list[tuple[str, str]]) -> None:
    for name, value in facts:
        console.print(f"  {name:<13}{value}", markup=False, highlight=False)


def _shards(split: Split) -> str:
    count = len(split.shards)
    return f"{count:,} shards of {split.shard_rows:,}" if count > 1 else f"{count} shard"


def _rule(rule: dict[str, Any], overlapping: bool) -> str:
    if rule["by"] is None:
        return f"at random, one by one, seed {rule['seed']}"
    how = f"in blocks of {rule['block']}, at random, seed {rule['seed']}" if rule["block"] else "in order"
    apart = "; windows that share values with a later split are left out" if overlapping else ""
    return f"by {rule['by']}, {how}{apart}"


def _missing(store: Store) -> str:
    policy, value = store.attributes["missing"]["policy"], store.attributes["missing"]["fill_value"]
    if policy == "error":
        return "none, or it would have been an error"
    found = ", ".join(f"{count:,} of {variable}" for variable, count in store.missing.items() if count)
    what = {"drop": "events left out", "fill": f"filled with {'the mean' if value is None else value}"}[policy]
    return f"{found or 'none found'}: {what}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
