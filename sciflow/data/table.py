"""Tables as sources: CSV and Parquet, streamed a batch of rows at a time."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sciflow.data.cast import to_floats
from sciflow.data.layout import Layout, SampleDim, unknown
from sciflow.data.source import Block, EventSource
from sciflow.errors import DataError, LayoutError, first_line

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["TableSource"]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Text that is parsed at a time; a line must fit in, and types are guessed from the first piece.
TEXT_BYTES = 4 << 20


class TableSource(EventSource):
    """Rows of one or more CSV, TSV or Parquet files of the same columns.

    Args:
        paths: The files, read one after the other. A CSV file whose first line is all numbers has no header:
            its columns are called ``column_0``, ``column_1``, ...
        variables: Columns that make up an event; None takes all, which must then hold numbers.
        context: Columns that an event is conditioned on.
        dtype: Floating dtype of the events.

    Raises:
        LayoutError: A column does not exist.
        DataError: A column does not hold numbers, there are no rows, or a file is not what its name says.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        variables: Sequence[str] | None = None,
        context: Sequence[str] = (),
        dtype: str = "float32",
    ) -> None:
        self.name = str(paths[0])
        self._files = [_open(Path(path)) for path in paths]
        names = list(self._files[0].schema.names)
        for column in (*(variables or ()), *context):
            if column not in names:
                raise LayoutError(f"{self.name}: {unknown('column', column, names)}")
        chosen = list(variables) if variables else [name for name in names if name not in context]
        if not chosen:
            raise LayoutError(f"{self.name}: no column is left for the events")
        for column in (*chosen, *context):
            if [*chosen, *context].count(column) > 1 and names.count(column) == 1:
                raise LayoutError(f"{self.name}: column '{column}' is named twice")
            for file in self._files:
                _require_numbers(file, column, self.name)
        num_rows = sum(file.count(chosen[0]) for file in self._files)
        if num_rows == 0:
            raise DataError(f"{self.name}: the table has no rows")
        self.layout = Layout(
            variables=tuple(chosen),
            units=("",) * len(chosen),
            sample_dims=(SampleDim("row", "row", num_rows),),
            event_dims=(),
            context=tuple(context),
            context_size=len(context),
            dtype=dtype,
        )

    def blocks(self, max_bytes: int, start: int = 0) -> Iterator[Block]:
        layout = self.layout
        columns = [*layout.variables, *layout.context]
        num_variables, row = len(layout.variables), 0
        for file in self._files:
            for batch in file.batches(columns, max(1, max_bytes // layout.event_bytes)):
                first, row = row, row + batch.num_rows
                if batch.num_rows == 0 or row <= start:
                    continue
                values = np.empty((batch.num_rows, len(columns)), layout.dtype)
                for place, column in enumerate(columns):
                    what = f"{file.path}: column '{column}'"
                    numbers = batch.column(batch.schema.get_field_index(column))
                    values[:, place] = _floats(numbers, layout.dtype, what, column in file.whole)
                yield Block(first, values[:, :num_variables], values[:, num_variables:] if layout.context else None)

    def coordinates(self) -> xr.Dataset:
        import xarray as xr

        # Rows are their own numbers: a coordinate would only say so.
        return xr.Dataset(coords={"variable": np.array(self.layout.variables, object)})


class _File(Protocol):
    """One file of a table.

    Attributes:
        path: Where it is.
        schema: Its columns, as pyarrow has them.
        whole: Columns of text that begin with whole numbers.
    """

    path: Path
    schema: Any
    whole: set[str]

    def count(self, column: str) -> int: ...

    def batches(self, columns: Sequence[str], size: int) -> Iterator[Any]: ...


class _ParquetFile:
    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self.path, self.whole = path, set[str]()
        with _readable(path):
            # Read as it is needed: pyarrow's datasets read ahead without a bound, whole groups of rows.
            self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
            self.schema = self._file.schema_arrow

    def count(self, column: str) -> int:
        return int(self._file.metadata.num_rows)

    def batches(self, columns: Sequence[str], size: int) -> Iterator[Any]:
        with _readable(self.path):
            yield from self._file.iter_batches(size, columns=list(columns), use_threads=False)


class _TextFile:
    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.types as types

        self.path = path
        self._delimiter = DELIMITERS[path.suffix.lower()]
        self._floats: dict[str, Any] = {}
        with _readable(path):
            self._names = _names_of_headless(path, self._delimiter)
            if self._names is not None:
                warnings.warn(
                    f"{path}: no header: columns are called {', '.join(self._names[:3])}"
                    f"{', ...' if len(self._names) > 3 else ''}, and the first line is data",
                    stacklevel=2,
                )
            begin = self._open(None).schema
            self.whole = {field.name for field in begin if types.is_integer(field.type)}
            # What begins with whole numbers, or with nothing, may go on with fractions.
            guessed = [field.name for field in begin if field.name in self.whole or types.is_null(field.type)]
            self._floats = dict.fromkeys(guessed, pyarrow.float64())
            self.schema = self._open(None).schema

    def count(self, column: str) -> int:
        with _readable(self.path):
            return sum(batch.num_rows for batch in self._open([column]))

    def batches(self, columns: Sequence[str], size: int) -> Iterator[Any]:
        with _readable(self.path):
            for batch in self._open(columns):
                for start in range(0, batch.num_rows, size):
                    yield batch.slice(start, size)

    def _open(self, columns: Sequence[str] | None) -> Any:
        from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, open_csv

        return open_csv(
            str(self.path),
            # With threads, messages do not say in which row.
            ReadOptions(column_names=self._names, block_size=TEXT_BYTES, use_threads=False),
            ParseOptions(delimiter=self._delimiter),
            ConvertOptions(column_types=self._floats, include_columns=columns),
        )


def _open(path: Path) -> _File:
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file")
    return _TextFile(path) if path.suffix.lower() in DELIMITERS else _ParquetFile(path)


def _floats(numbers: Any, dtype: str, what: str, whole: bool) -> np.ndarray:
    """A column as floats, nulls as NaN; whole numbers are told apart, or refused."""
    import pyarrow.types as types

    if types.is_integer(numbers.type):
        to_floats(numbers.drop_null().to_numpy(), dtype, what)
    elif not types.is_floating(numbers.type):
        numbers = numbers.cast("float64")
    values = numbers.to_numpy(zero_copy_only=False)
    numbers = values[np.isfinite(values)] if whole else values[:0]
    if (numbers == np.rint(numbers)).all():
        to_floats(numbers.astype(np.int64), dtype, what)
    return to_floats(values, dtype, what)


def _require_numbers(file: _File, column: str, first: str) -> None:
    import pyarrow.types as types

    found = file.schema.names.count(column)
    if found == 0:
        raise DataError(f"{file.path}: no column '{column}', which {first} has: give files of the same columns")
    if found > 1:
        raise DataError(f"{file.path}: {found} columns are called '{column}': rename them")
    kind = file.schema.field(column).type
    if types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind):
        return
    values = (value.as_py() for batch in file.batches([column], 1 << 16) for value in batch.column(0))
    example = next((f", such as {str(v)[:40]!r} at row={row}" for row, v in enumerate(values) if not _is_number(v)), "")
    what = "dates" if types.is_temporal(kind) else "text"
    raise DataError(
        f"{file.path}: column '{column}' holds {what}{example}; events are made of numbers: "
        "leave it out (--variables names the others), or encode it first"
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return value is None
    return True


def _names_of_headless(path: Path, delimiter: str) -> list[str] | None:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        first = next(csv.reader(lines, delimiter=delimiter), [])
    words = [word for word in first if word.strip()]
    if not words or not all(_is_number(word) for word in words):
        return None
    return [f"column_{place}" for place in range(len(first))]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises on a file that is not what it claims into one line that names the file."""
    import pyarrow

    try:
        yield
    except DataError:
        raise
    except PermissionError:
        raise DataError(f"{path}: no permission to read it") from None
    except (pyarrow.ArrowException, csv.Error, UnicodeDecodeError, OSError) as error:
        reason = first_line(error)
        what = "text among numbers" if "conversion error" in reason else "not a readable table"
        raise DataError(f"{path}: {what}: {reason}") from None
