"""The commands; what they do is done elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sciflow.errors import ConfigError
from sciflow.option_values import (
    is_setting,
    parse_context,
    parse_names,
    parse_numbers,
    parse_settings,
    parse_sizes,
    parse_split_by,
    parse_strides,
)
from sciflow.terminal import Commands, is_first, say

__all__ = ["app", "main"]


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Density estimation on sharded scientific data: `shard` a file, `train` a flow on Ray, `score` every event,
    `detect` what is odd in new ones.

    A first run:

        sciflow shard era5.nc era5.zarr --variables t2m --event time=24 --sample latitude,longitude

        sciflow check workflow.yaml

        sciflow train workflow.yaml training.max_steps=2000

        sciflow score runs/NAME era5.zarr --out scores.zarr
    """,
)

Workflow = Annotated[Path, typer.Argument(help="Workflow file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings in place of the file's: training.max_steps=500.", show_default=False
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use (auto, ray://..., HOST:PORT); a local one is started otherwise.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs; every node must see it.")]


def main() -> None:
    """Run a command; what it reports as an error is one line on standard error."""
    app()


@app.command()
def shard(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... STORE",
            help="Files of one kind (NetCDF, Zarr, GRIB, CSV, TSV, Parquet, npz, npy), then the store to be written.",
            show_default=False,
        ),
    ],
    variables: Annotated[str | None, typer.Option(help="What an event is made of: t2m,u10.")] = None,
    event: Annotated[
        str | None,
        typer.Option(
            help="Dimensions inside an event: time=24 (windows of 24 steps), lat=8,lon=8 (patches), level (all of it)."
        ),
    ] = None,
    sample: Annotated[str | None, typer.Option(help="Dimensions that are counted: lat,lon.")] = None,
    stride: Annotated[
        str | None, typer.Option(help="Steps from one window to the next: time=12. Default: no overlap.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Variables that events are conditioned on.")] = None,
    like: Annotated[
        str | None,
        typer.Option(help="A store that is there: new data are laid out as its own, to be scored and not trained on."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Shares of training, validation and test; by default 0.8,0.1,0.1.")
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            help="Keep positions along a dimension together: time (in order), or time=7 (blocks of 7, at random)."
        ),
    ] = None,
    missing: Annotated[
        str | None, typer.Option(help="What becomes of missing values: error (by default), drop (the event) or fill.")
    ] = None,
    fill_value: Annotated[float | None, typer.Option(help="What to fill with; the variable's mean by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 (by default) or float64.")] = None,
    shard_rows: Annotated[
        int | None, typer.Option(help="Events in a training shard; by default 64 MiB of them, or a sixteenth of all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    writers: Annotated[int | None, typer.Option(help="Writing threads; each holds a shard in memory.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write events into one sharded Zarr store, laid out for the way they will be read.

    An event is a row of a table, a window along a dimension, or a patch over several. Every shard is written whole,
    with checksums; a command that was interrupted goes on when it is given again.

        sciflow shard era5.nc era5.zarr --variables t2m --event time=24 --sample latitude,longitude

        sciflow shard stars.csv stars.zarr --variables mean,deviation,skewness --missing drop

        sciflow shard era5_today.nc incoming/today.zarr --like era5.zarr
    """
    from sciflow.data.shard import shard as write_store

    if len(sources) < 2:
        raise ConfigError("give one source or more, and then the store to be written: sciflow shard data.nc data.zarr")
    by, block = parse_split_by(split_by)
    store = write_store(
        sources[:-1] if len(sources) > 2 else sources[0],
        sources[-1],
        variables=parse_names(variables),
        event=parse_sizes(event, "event"),
        sample=parse_names(sample),
        stride=parse_strides(stride),
        context=parse_names(context) or (),
        split=None if split is None else parse_numbers(split, "split"),
        split_by=by,
        split_block=block,
        missing=missing,  # type: ignore[arg-type]
        fill_value=fill_value,
        dtype=dtype,
        like=like,
        shard_rows=shard_rows,
        seed=seed,
        num_writers=writers,
        overwrite=overwrite,
        progress=not quiet,
    )
    typer.echo(repr(store))
    if like is None:
        typer.echo(f"next: sciflow inspect {sources[-1]}, or train on it: data.store in a workflow file")
    else:
        typer.echo("next: sciflow detect WORKFLOW, which looks at the stores that detection.stores names")


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(
            metavar="STORE|RUN|SCORES",
            help="A store, a run, a model, scores, samples or detections.",
            show_default=False,
        ),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Hold every shard of a store against its hash.")] = False,
) -> None:
    """Say what a store, a run, a model, scores, samples or detections are, in a screenful."""
    from sciflow.inspection import describe

    describe(path)
    if verify:
        from sciflow.data.store import open_store

        open_store(path).verify()
        typer.echo("every shard is what was written")


@app.command()
def check(
    workflow: Workflow,
    overrides: Overrides = None,
    keys: Annotated[bool, typer.Option("--keys", help="Print all keys, what they mean, and their values.")] = False,
) -> None:
    """Check a workflow, its store and its model before anything starts; no Ray is needed."""
    from sciflow.config import explained, load_workflow
    from sciflow.training.train import check as check_workflow

    loaded = load_workflow(workflow, overrides or [])
    if keys:
        typer.echo(explained(loaded))
    chosen, num_rows = check_workflow(loaded, str(workflow))
    detection = None
    if "detection" in loaded.model_fields_set:
        from sciflow.anomaly.scheduled.check import check as check_detection

        detection = check_detection(chosen, str(workflow))
    rows = f"{num_rows:,} training events of {chosen.data.store}"
    typer.echo(f"{workflow}: ok: {chosen.name}, {chosen.model['name']} on {rows}")
    if detection is not None:
        typer.echo(f"detection: {detection}")


@app.command()
def train(
    workflow: Workflow,
    overrides: Overrides = None,
    address: Address = None,
    runs: Runs = Path("runs"),
    overwrite: Overwrite = False,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train the workflow's density on Ray, 1 to N workers. A run that stopped goes on with the same command.

    The result is in runs/NAME: model, checkpoints, metrics.jsonl, TensorBoard files and report.html.

        sciflow train workflows/era5_daily_cycle.yaml training.max_steps=500 cluster.num_workers=2
    """
    from sciflow.config import load_workflow
    from sciflow.training.report import write_report
    from sciflow.training.run import Run
    from sciflow.training.train import train as train_workflow

    name = load_workflow(workflow, overrides or []).name
    ended = not overwrite and Run(runs / name).outcome is not None
    run = train_workflow(
        workflow, overrides or [], address=address, runs=runs, overwrite=overwrite, local=local, progress=not quiet
    )
    if run.outcome is None:
        say(f"stopped on request; the same command goes on from {run.folder / 'checkpoints'}")
        sys.exit(143)
    if is_first():
        if ended:
            typer.echo(f"{_short(run.folder)} has ended before; begin it anew with --overwrite")
        typer.echo(f"{run.fit()!r}")
        typer.echo(f"report: {write_report(run)}")
        typer.echo(f"next: sciflow score {_short(run.folder)} {run.workflow.data.store} --out scores.zarr")


@app.command()
def score(
    run: Annotated[Path, typer.Argument(help="Run, or folder of a model.", show_default=False)],
    store: Annotated[
        str | None, typer.Argument(help="Store whose events are scored; by default the run's own.", show_default=False)
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of the method: tolerance=1e-4.", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Zarr store to be written: a path or a URL; by default scoring.out of the run's workflow."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How log p is to be known: exact, ode or elbo; by default scoring.method of the run's workflow, or "
            "what the family has."
        ),
    ] = None,
    address: Address = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Events at a time, if not as in the workflow.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a task.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Score in this process, without Ray.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compute log p of every event of a store, one Ray task a shard.

    What was interrupted goes on with the same command. Scores by another method, or with other options, are others:
    they never continue what is there, nor are taken for it.

        sciflow score runs/era5-daily-cycle era5.zarr --out scores.zarr

        sciflow score runs/rain rain.zarr --method elbo num_draws=256 --out scores.zarr --local
    """
    from sciflow.scoring.distributed import score_on_ray

    given = options or []
    if store is not None and is_setting(store):
        given, store = [store, *given], None
    scores = score_on_ray(
        run,
        store,
        out,
        method=method,
        options=parse_settings(given, "the method such as tolerance=1e-4"),
        batch_size=batch_size,
        address=address,
        local=local,
        use_gpu=gpu,
        overwrite=overwrite,
        progress=not quiet,
    )
    path = _short(scores)
    typer.echo(f"scores: {path}; open with xarray.open_zarr('{path}')")


@app.command()
def detect(
    workflow: Workflow,
    overrides: Overrides = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Judge a range anew: from here, 2026-01-31 or a number along the first dimension."),
    ] = None,
    stop: Annotated[str | None, typer.Option("--to", help="The last of the range: 2026-01 is all of January.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait for another run that is at work on the same results.")
    ] = 0.0,
    address: Address = None,
    runs: Runs = Path("runs"),
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a task.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Work in this process, without Ray.")] = False,
    quiet: Quiet = False,
) -> None:
    """Judge what is new in the stores that a workflow watches: what a scheduler calls, as often as it likes.

    Results, events and a report are in runs/NAME/detections. Nothing is judged twice; a run that was killed goes on
    with the same command. Exit code: 0 nothing, 10 anomalies, 3 an input that could not be read (the rest is done),
    13 both, 1 a failure.

        sciflow shard era5_today.nc incoming/today.zarr --like era5.zarr

        sciflow detect workflow.yaml detection.stores=incoming/*.zarr

        sciflow detect workflow.yaml --from 2026-01 --to 2026-02
    """
    from sciflow.anomaly.scheduled.detect import detect as detect_new
    from sciflow.anomaly.scheduled.detect import plan_of

    given = overrides or []
    if dry_run:
        typer.echo(str(plan_of(workflow, given, start=start, stop=stop, runs=runs)))
        return
    run = detect_new(
        workflow,
        given,
        start=start,
        stop=stop,
        address=address,
        local=local,
        wait=wait,
        use_gpu=gpu,
        runs=runs,
        progress=not quiet,
    )
    for words in run.unreadable:
        say(f"left for the next run: {words}")
    for note in run.notes:
        say(f"note: {note}")
    if run.drift is not None:
        typer.echo(run.drift)
    typer.echo(str(run))
    sys.exit(run.exit_code)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Run, or folder of a model.", show_default=False)],
    out: Annotated[str, typer.Option(help="Zarr store to be written: a path or a URL.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Options of the model's sampler: num_steps=20.", show_default=False
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Number of draws.")] = 1000,
    context: Annotated[
        str | None,
        typer.Option(
            help="Context of a conditional density: numbers, 0.5,12.0; or YAML, '{season: 2, place: [1, 2]}'."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same draws.")] = 0,
    address: Address = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a task.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Draw in this process, without Ray.")] = False,
    block_rows: Annotated[
        int | None, typer.Option(min=1, help="Most draws of a task; 65,536 by default, or 8 MiB of them.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw events from a trained density, in data units, as a Zarr store; one Ray task a block of draws.

    What was interrupted goes on with the same command. The same seed gives the same draws on any number of workers, as
    long as --block-rows and --gpu are the same. Draws that make up one block are drawn in this process.

        sciflow sample runs/era5-daily-cycle --n 1000000 --out samples.zarr

        sciflow sample runs/rain num_steps=20 guidance=2.0 --context '{season: 2}' --out samples.zarr --gpu
    """
    from sciflow.scoring.distributed import sample_on_ray

    samples = sample_on_ray(
        run,
        n,
        out,
        context=parse_context(context),
        options=parse_settings(options or [], "the model's sampler such as num_steps=20"),
        seed=seed,
        block_rows=block_rows,
        address=address,
        local=local,
        use_gpu=gpu,
        overwrite=overwrite,
        progress=not quiet,
    )
    path = _short(samples)
    typer.echo(f"samples: {path}; open with xarray.open_zarr('{path}')")


def _short(path: str | Path) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    main()
