"""Tables as sources: CSV and Parquet, streamed a batch of rows at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.data.layout import Layout, SampleDim
from sciflow.data.source import Block, EventSource
from sciflow.errors import DataError, LayoutError, nearest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["TableSource"]

DELIMITERS = {".csv": ",", ".tsv": "\t"}


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
        self.paths = [Path(path) for path in paths]
        self.name = str(self.paths[0])
        self._table = _open(self.paths)
        names = list(self._table.schema.names)
        for column in (*(variables or ()), *context):
            if column not in names:
                raise LayoutError(f"{self.name}: no column '{column}'; {nearest(column, names)} It has: {', '.join(names)}")
        chosen = list(variables) if variables else [name for name in names if name not in context]
        for column in (*chosen, *context):
            self._require_numbers(column)
        num_rows = self._rows()
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
        row = 0
        with _readable(self.name):
            for batch in self._table.to_batches(columns=columns, batch_size=max(1, max_bytes // layout.event_bytes)):
                first, row = row, row + batch.num_rows
                if batch.num_rows == 0 or row <= start:
                    continue
                values = np.empty((batch.num_rows, len(columns)), layout.dtype)
                for place, column in enumerate(columns):
                    # Nulls come as NaN; integers and booleans as floats.
                    values[:, place] = batch.column(batch.schema.get_field_index(column)).cast("float64").to_numpy(
                        zero_copy_only=False
                    )
                num_variables = len(layout.variables)
                yield Block(first, values[:, :num_variables], values[:, num_variables:] if layout.context else None)

    def coordinates(self) -> xr.Dataset:
        import xarray as xr

        return xr.Dataset(
            coords={"row": np.arange(self.layout.num_grid_events), "variable": np.array(self.layout.variables, "U")}
        )

    def _rows(self) -> int:
        with _readable(self.name):
            return int(self._table.count_rows())

    def _require_numbers(self, column: str) -> None:
        import pyarrow.types as types

        kind = self._table.schema.field(column).type
        if types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind):
            return
        if types.is_null(kind):
            raise DataError(f"{self.name}: column '{column}' is empty: leave it out with --variables")
        with _readable(self.name):
            head = self._table.head(1, columns=[column])
        example = f", such as {str(head[column][0].as_py())!r}" if len(head) else ""
        what = "dates" if types.is_temporal(kind) else "text"
        raise DataError(
            f"{self.name}: column '{column}' holds {what}{example}; events are made of numbers: "
            "leave it out with --variables, or encode it first"
        )


def _open(paths: Sequence[Path]) -> Any:
    import pyarrow.csv
    import pyarrow.dataset

    files = [str(path) for path in paths]
    suffix = paths[0].suffix.lower()
    with _readable(files[0]):
        if suffix not in DELIMITERS:
            return pyarrow.dataset.dataset(files, format="parquet")
        for path in paths:
            if path.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty")
        options = pyarrow.csv.ReadOptions(column_names=_names_of_headless(paths[0], DELIMITERS[suffix]))
        parse = pyarrow.csv.ParseOptions(delimiter=DELIMITERS[suffix])
        form = pyarrow.dataset.CsvFileFormat(parse_options=parse, read_options=options)
        return pyarrow.dataset.dataset(files, format=form)


def _names_of_headless(path: Path, delimiter: str) -> list[str] | None:
    with path.open(newline="", encoding="utf-8", errors="replace") as lines:
        first = next(csv.reader(lines, delimiter=delimiter), [])
    try:
        [float(word) for word in first]
    except ValueError:
        return None
    return [f"column_{place}" for place in range(len(first))]


class _readable:
    """Turns what pyarrow raises on a file that is not what it claims into one line that names the file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        import pyarrow

        if isinstance(error, FileNotFoundError):
            raise DataError(f"{self.name}: no such file") from None
        if isinstance(error, PermissionError):
            raise DataError(f"{self.name}: no permission to read it") from None
        if isinstance(error, (pyarrow.ArrowException, UnicodeDecodeError, OSError)) and not isinstance(error, DataError):
            first_line = str(error).splitlines()[0]
            raise DataError(f"{self.name}: not a readable table: {first_line}") from None
