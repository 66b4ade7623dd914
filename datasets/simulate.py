"""Simulated data of any size, streamed in bounded memory: a smooth correlated field, and a table with known log p.

Run as a script, it writes a file for ``sciflow shard``::

    python datasets/simulate.py field field.nc --gigabytes 1 --seed 0
    python datasets/simulate.py table rows.npy --rows 1000000 --columns 16 --seed 0

Every block is a pure function of its place and the seed, so blocks made alone and in any order are, bit for bit, those
of the whole.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

if __name__ == "__main__":
    # The products are small: on a busy machine more threads than one wait for each other. Read when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

__all__ = ["field_block", "table_block", "table_log_prob", "write_field", "write_table"]

# The field: hourly steps, made in chunks. Temperatures in kelvin, lengths in grid cells.
CHUNK_STEPS = 16
MEMORY_STEPS = 240
CORRELATION_STEPS = 24.0
CORRELATION_CELLS = 12.0
CELLS_PER_NODE = 8
WEATHER, DAILY, WHITE = 4.0, 5.0, 0.15
# The table.
CHUNK_ROWS = 8192
BLOCK_BYTES = 32 << 20

Floats = np.ndarray


def field_block(start: int, stop: int, height: int, width: int, seed: int = 0) -> Floats:
    r"""Simulate steps ``start`` to ``stop`` of an hourly temperature field.

    .. math:: T_t = \bar T + A \cos\frac{2\pi (t - t_0)}{24} + w_t + \epsilon_t

    with a mean that falls towards the poles, a daily cycle whose amplitude and hour vary in space, weather
    :math:`w_t` that is smooth in space and autoregressive in time (its memory ends after ten days), and a little white
    noise.

    Args:
        start: First step.
        stop: The step after the last.
        height: Rows of the grid, from north to south.
        width: Columns of the grid.
        seed: The same seed, the same field.

    Returns:
        ``[stop - start, height, width]``, float32, in kelvin.

    Example:
        >>> whole = field_block(0, 40, 16, 24)
        >>> bool((field_block(10, 20, 16, 24) == whole[10:20]).all())
        True
    """
    if start < 0 or stop < start or height < 1 or width < 1:
        raise ValueError(f"field_block: steps {start} to {stop} on a grid of {height} x {width}: nothing to simulate")
    block = np.empty((stop - start, height, width), np.float32)
    for chunk in range(start // CHUNK_STEPS, -(-stop // CHUNK_STEPS)):
        first = chunk * CHUNK_STEPS
        low, high = max(start, first), min(stop, first + CHUNK_STEPS)
        block[low - start : high - start] = _field_chunk(chunk, height, width, seed)[low - first : high - first]
    return block


def table_block(start: int, stop: int, columns: int, seed: int = 0, components: int = 6) -> Floats:
    """Simulate rows ``start`` to ``stop`` of a table: a mixture of correlated Gaussians.

    Args:
        start: First row.
        stop: The row after the last.
        columns: Number of columns.
        seed: The same seed, the same mixture and the same rows.
        components: Number of Gaussians.

    Returns:
        ``[stop - start, columns]``, float32.

    Example:
        >>> table_block(0, 5, 3).shape
        (5, 3)
    """
    if start < 0 or stop < start or columns < 1 or components < 1:
        raise ValueError(f"table_block: rows {start} to {stop} of {columns} columns: nothing to simulate")
    block = np.empty((stop - start, columns), np.float32)
    for chunk in range(start // CHUNK_ROWS, -(-stop // CHUNK_ROWS)):
        first = chunk * CHUNK_ROWS
        low, high = max(start, first), min(stop, first + CHUNK_ROWS)
        block[low - start : high - start] = _table_chunk(chunk, columns, seed, components)[low - first : high - first]
    return block


def table_log_prob(rows: Floats, seed: int = 0, components: int = 6) -> Floats:
    """Return the true log p of rows under the mixture that :func:`table_block` draws from.

    Args:
        rows: ``[n, columns]``.
        seed: As given to :func:`table_block`.
        components: As given to :func:`table_block`.

    Returns:
        ``[n]``, float64, in nats.
    """
    rows = np.asarray(rows, np.float64)
    weights, means, factors = _mixture(rows.shape[1], seed, components)
    terms = np.empty((components, len(rows)))
    for k in range(components):
        z = np.linalg.solve(factors[k], (rows - means[k]).T)
        log_scale = np.log(np.diagonal(factors[k])).sum() + 0.5 * rows.shape[1] * np.log(2 * np.pi)
        terms[k] = np.log(weights[k]) - 0.5 * (z**2).sum(0) - log_scale
    highest = terms.max(0)
    return highest + np.log(np.exp(terms - highest).sum(0))


def write_field(path: str | Path, steps: int, height: int = 128, width: int = 256, seed: int = 0) -> Path:
    """Write a field as NetCDF (``.nc``, labelled, variable ``t2m``) or NumPy (``.npy``), block by block.

    Args:
        path: The file; it appears whole or not at all.
        steps: Number of hourly steps.
        height: Rows of the grid.
        width: Columns of the grid.
        seed: Of the simulation.

    Returns:
        ``path``.
    """
    path = Path(path)
    blocks = (
        field_block(low, high, height, width, seed) for low, high in _ranges(steps, 4 * height * width, CHUNK_STEPS)
    )
    if path.suffix == ".nc":
        return _whole(path, lambda beside: _write_netcdf(beside, blocks, steps, height, width, seed))
    return _whole(path, lambda beside: _write_npy(beside, blocks, (steps, height, width)))


def write_table(path: str | Path, rows: int, columns: int = 16, seed: int = 0, components: int = 6) -> Path:
    """Write a table as NumPy (``.npy``), block by block.

    Args:
        path: The file; it appears whole or not at all.
        rows: Number of rows.
        columns: Number of columns.
        seed: Of the mixture and of the rows.
        components: Number of Gaussians.

    Returns:
        ``path``.
    """
    ranges = _ranges(rows, 4 * columns, CHUNK_ROWS)
    blocks = (table_block(low, high, columns, seed, components) for low, high in ranges)
    return _whole(Path(path), lambda beside: _write_npy(beside, blocks, (rows, columns)))


# The field's parts. ---------------------------------------------------------------------------------------------


def _field_chunk(chunk: int, height: int, width: int, seed: int) -> Floats:
    rows, columns, kernel, mean, cycle = _grid(height, width, seed)
    nodes = cycle.shape[1:]
    past = [_normal((CHUNK_STEPS, *nodes), seed, 1, place) for place in range(chunk - _memory_chunks(), chunk + 1)]
    weather = kernel @ np.concatenate(past).reshape(-1, nodes[0] * nodes[1])
    angles = 2 * np.pi * (chunk * CHUNK_STEPS + np.arange(CHUNK_STEPS)) / 24
    waves = np.stack([np.ones(CHUNK_STEPS), np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    at_nodes = weather.reshape(CHUNK_STEPS, *nodes) + np.tensordot(waves, cycle, axes=1)
    block = _normal((CHUNK_STEPS, height, width), seed, 2, chunk)
    block *= np.float32(WHITE)
    block += np.matmul(rows, np.matmul(at_nodes, columns))
    block += mean
    return block


@lru_cache(maxsize=4)
def _grid(height: int, width: int, seed: int) -> tuple[Floats, ...]:
    """What does not change: interpolation, memory kernel, mean by latitude, and at the nodes the pattern and cycle."""
    rows, columns = _interpolation(height), _interpolation(width).T
    nodes = (rows.shape[1], columns.shape[0])
    # Weight of each step of the past in each step of the chunk: an autoregression, cut where it has faded.
    lag = (MEMORY_STEPS + np.arange(CHUNK_STEPS))[:, None] - np.arange(MEMORY_STEPS + CHUNK_STEPS)[None, :]
    kernel = np.where((lag >= 0) & (lag < MEMORY_STEPS), np.exp(-lag / CORRELATION_STEPS), 0.0)
    kernel *= WEATHER / np.linalg.norm(kernel[0])
    mean = 300 - 0.5 * np.linspace(60, 40, height)[:, None]
    pattern, tilt = (_normal(nodes, seed, 3, place) for place in range(2))
    gain = rows.sum(1).mean() * columns.sum(0).mean()
    amplitude = DAILY / gain * (0.3 + 0.7 / (1 + np.exp(-2 * tilt)))
    noon = np.pi / 12 * (15 - np.linspace(0, 2, nodes[1]))  # The sun comes from the east.
    cycle = np.stack([2 * pattern, amplitude * np.cos(noon), amplitude * np.sin(noon)])
    parts = (rows, columns, kernel, mean, cycle)
    return tuple(np.ascontiguousarray(part, dtype=np.float32) for part in parts)


def _interpolation(size: int) -> Floats:
    """``[size, nodes]``: Gaussian weights of coarse nodes, each row of unit length so that the variance is one."""
    margin = CORRELATION_CELLS * 2
    nodes = np.arange(-margin, size + margin, CELLS_PER_NODE)
    distance = (np.arange(size)[:, None] - nodes[None, :]) / CORRELATION_CELLS
    weights = np.where(np.abs(distance) < 4, np.exp(-(distance**2)), 0.0)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def _memory_chunks() -> int:
    return MEMORY_STEPS // CHUNK_STEPS


# The table's parts. ---------------------------------------------------------------------------------------------


def _table_chunk(chunk: int, columns: int, seed: int, components: int) -> Floats:
    weights, means, factors = _mixture(columns, seed, components)
    generator = _generator(seed, 4, chunk)
    component = generator.choice(components, size=CHUNK_ROWS, p=weights)
    rows = generator.standard_normal((CHUNK_ROWS, columns), dtype=np.float32)
    for k in range(components):
        mine = component == k
        rows[mine] = rows[mine] @ factors[k].T.astype(np.float32) + means[k].astype(np.float32)
    return rows


@lru_cache(maxsize=4)
def _mixture(columns: int, seed: int, components: int) -> tuple[Floats, Floats, Floats]:
    """Weights, means and lower triangular factors of the covariances."""
    generator = _generator(seed, 5, columns)
    weights = generator.dirichlet(np.full(components, 5.0))
    means = 2.5 * generator.standard_normal((components, columns))
    mixing = generator.standard_normal((components, columns, columns)) / np.sqrt(columns)
    factors = np.linalg.cholesky(mixing @ mixing.transpose(0, 2, 1) + 0.1 * np.eye(columns))
    return weights, means, factors


# Random numbers and files. --------------------------------------------------------------------------------------


def _generator(seed: int, stream: int, place: int) -> np.random.Generator:
    """The generator of one place in one stream; places before the beginning count too."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, stream, place + (1 << 32)])))


def _normal(shape: tuple[int, ...], seed: int, stream: int, place: int) -> Floats:
    return _generator(seed, stream, place).standard_normal(shape, dtype=np.float32)


def _ranges(size: int, bytes_each: int, multiple: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // bytes_each // multiple) * multiple
    for low in range(0, size, step):
        yield low, min(low + step, size)


def _whole(path: Path, write: Callable[[Path], None]) -> Path:
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _write_npy(path: Path, blocks: Iterator[Floats], shape: tuple[int, ...]) -> None:
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        for block in blocks:
            file.write(block.astype("<f4", copy=False).data)


def _write_netcdf(path: Path, blocks: Iterator[Floats], steps: int, height: int, width: int, seed: int) -> None:
    import h5netcdf

    with h5netcdf.File(path, "w") as file:
        file.attrs["title"] = "Simulated hourly temperature"
        file.attrs["source"] = f"sciflow datasets/simulate.py, seed {seed}"
        file.dimensions = {"time": steps, "latitude": height, "longitude": width}
        for name, values, units in (
            ("time", np.arange(steps, dtype="i8"), "hours since 2000-01-01"),
            ("latitude", np.linspace(60, 40, height), "degrees_north"),
            ("longitude", np.linspace(0, 30, width), "degrees_east"),
        ):
            variable = file.create_variable(name, (name,), values.dtype, data=values)
            variable.attrs["units"] = units
        field = file.create_variable("t2m", ("time", "latitude", "longitude"), "<f4")
        field.attrs["units"] = "K"
        field.attrs["long_name"] = "2 metre temperature, simulated"
        start = 0
        for block in blocks:
            field[start : start + len(block)] = block
            start += len(block)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write simulated data of any size, in bounded memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    field = commands.add_parser("field", help="hourly temperature on a grid; OUT.nc or OUT.npy")
    field.add_argument("--height", type=int, default=128, help="rows of the grid (%(default)s)")
    field.add_argument("--width", type=int, default=256, help="columns of the grid (%(default)s)")
    field.add_argument("--steps", type=int, help="hourly steps, in place of --gigabytes")
    table = commands.add_parser("table", help="a mixture of correlated Gaussians; OUT.npy")
    table.add_argument("--columns", type=int, default=16, help="number of columns (%(default)s)")
    table.add_argument("--rows", type=int, help="number of rows, in place of --gigabytes")
    for command in (field, table):
        command.add_argument("out", metavar="OUT", type=Path, help="the file to be written")
        command.add_argument("--gigabytes", type=float, default=1.0, help="size of the data, 10^9 bytes (%(default)s)")
        command.add_argument("--seed", type=int, default=0, help="the same seed, the same data (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    is_field = options.command == "field"
    kinds = (".nc", ".npy") if is_field else (".npy",)
    if options.out.suffix not in kinds:
        parser.error(f"{options.out}: the name must end in {' or '.join(kinds)}")
    if not options.out.parent.is_dir():
        parser.error(f"{options.out}: there is no folder {options.out.parent}")
    event = (options.height, options.width) if is_field else (options.columns,)
    count = options.steps if is_field else options.rows
    if min(event) < 1 or options.seed < 0 or (count is not None and count < 1) or options.gigabytes <= 0:
        parser.error("sizes must be 1 or more, and the seed 0 or more")
    bytes_each = 4 * int(np.prod(event))
    count = count if count is not None else max(1, round(options.gigabytes * 1e9 / bytes_each))
    began = time.perf_counter()
    if is_field:
        write_field(options.out, count, options.height, options.width, options.seed)
    else:
        write_table(options.out, count, options.columns, options.seed)
    seconds = time.perf_counter() - began
    size = count * bytes_each
    shape = " x ".join(f"{n:,}" for n in (count, *event))
    print(f"{options.out}: {shape} float32, {size / 1e9:.3g} GB in {seconds:.1f} s ({size / 1e6 / seconds:.0f} MB/s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
