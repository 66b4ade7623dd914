"""From what a user names, a file, a folder, a table or an array, to a source of events."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.data.cast import to_floats
from sciflow.data.source import EventSource, GridSource
from sciflow.data.table import DELIMITERS, TableSource
from sciflow.errors import DataError, LayoutError, first_line

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["as_dataset", "expand", "open_source"]

TABLES = {*DELIMITERS, ".parquet", ".pq"}
NETCDF = {".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".netcdf"}
GRIB = {".grib", ".grib2", ".grb", ".grb2"}
ARRAYS = {".npz", ".npy"}
# Several files at once are read in pieces of this size, whatever part of a piece is asked for.
LAZY_CHUNK = "4MiB"


def open_source(
    data: Any,
    *,
    variables: Sequence[str] | None = None,
    event: Mapping[str, int | None] | Sequence[str] | None = None,
    sample: Sequence[str] | None = None,
    stride: Mapping[str, int] | None = None,
    context: Sequence[str] = (),
    dtype: str = "float32",
) -> EventSource:
    """Open what a user has as a source of events.

    Args:
        data: A path or several of one kind (NetCDF, Zarr, GRIB, CSV, TSV, Parquet, npz, npy), or a pattern such as
            ``era5_*.nc``; an ``xarray.Dataset`` or ``DataArray``, a pandas ``DataFrame``, a NumPy array or a torch
            tensor.
        variables: What an event is made of.
        event: Window length by dimension, None for a whole dimension; or names of whole dimensions.
        sample: Dimensions that are counted.
        stride: Steps from a window to the next, by dimension.
        context: Variables that an event is conditioned on.
        dtype: Floating dtype of the events.

    Raises:
        DataError: A file is missing, empty, not what its name says, or does not hold numbers.
        LayoutError: A variable or dimension does not exist or does not fit.
    """
    if dtype not in ("float32", "float64"):
        raise LayoutError(f"dtype '{dtype}': events are stored as float32 or float64")
    data = expand(data)
    paths = [data] if isinstance(data, (str, Path)) else data
    is_paths = isinstance(paths, (list, tuple)) and paths and all(isinstance(path, (str, Path)) for path in paths)
    if is_paths and Path(paths[0]).suffix.lower() in TABLES:
        if event or stride or list(sample or ["row"]) != ["row"]:
            raise LayoutError(
                f"{paths[0]}: the events of a table are its rows: leave out --event, --stride and --sample"
            )
        _require_one_kind(paths)
        _require_files(paths)
        return TableSource(paths, variables, context, dtype)
    dataset = _open_files(paths) if is_paths else as_dataset(data)
    name = _named(paths) if is_paths else "dataset"
    return GridSource(dataset, variables, event, sample, stride, context, dtype, name)


def expand(data: Any) -> Any:
    """Put in place of every path that is a pattern the files that it means, sorted; all else stays as it is.

    Raises:
        DataError: No file is meant.

    Example:
        >>> expand(["a.nc", "s3://bucket/*.zarr"])
        ['a.nc', 's3://bucket/*.zarr']
    """
    paths = [data] if isinstance(data, (str, Path)) else data
    if not isinstance(paths, (list, tuple)) or not any(_is_pattern(path) for path in paths):
        return data
    found: list[Any] = []
    for path in paths:
        files = sorted(glob.glob(str(path), recursive=True)) if _is_pattern(path) else [path]
        if not files:
            raise DataError(f"{path}: no such file, and none that it is a pattern of")
        found += files
    return found


def _is_pattern(path: Any) -> bool:
    if not isinstance(path, (str, Path)) or "://" in str(path) or not glob.has_magic(str(path)):
        return False
    # A file may well be called so.
    return not Path(path).exists()


def as_dataset(data: Any) -> xr.Dataset:
    """Return an ``xarray.Dataset`` of an array, a table or labelled data that are already in memory.

    Raises:
        DataError: It is none of these.

    Example:
        >>> dict(as_dataset(np.zeros((5, 3))).sizes)
        {'row': 5, 'feature': 3}
    """
    import pandas as pd
    import xarray as xr

    if isinstance(data, xr.Dataset):
        return data
    if isinstance(data, xr.DataArray):
        if data.name in data.coords:
            raise DataError(f"the array and one of its coordinates are both called '{data.name}': rename one")
        return data.to_dataset(name="value" if data.name is None else str(data.name))
    if isinstance(data, pd.Series):
        data = data.to_frame("value" if data.name is None else data.name)
    if isinstance(data, pd.DataFrame):
        names = [str(name) for name in data.columns]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{names.count(name)} columns are called '{name}': rename them")
        if "row" in names:
            raise DataError("a column is called 'row', as the rows themselves are: rename it")
        columns = {name: ("row", _values(data.iloc[:, place])) for place, name in enumerate(names)}
        return xr.Dataset(columns, coords={"row": _values(data.index)})
    if hasattr(data, "detach"):
        # NumPy knows no bfloat16.
        data = (data.float() if "bfloat16" in str(data.dtype) else data).detach().cpu().numpy()
    if isinstance(data, np.ndarray):
        return xr.Dataset({"x": (_dims(data.ndim), data)})
    raise DataError(f"cannot take events from a {type(data).__name__}: give a path, xarray, pandas, NumPy or torch")


def _values(column: pd.Series | pd.Index) -> np.ndarray:
    """A column as NumPy has it: pandas' own numbers with NaN where one is missing, times in UTC."""
    import pandas as pd

    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = pd.Series(column).dt.tz_convert("UTC").dt.tz_localize(None)
    if pd.api.types.is_extension_array_dtype(column.dtype) and pd.api.types.is_numeric_dtype(column.dtype):
        if not column.hasnans:
            return column.to_numpy()
        if pd.api.types.is_integer_dtype(column.dtype):
            to_floats(column.dropna().to_numpy(), "float64", f"column '{column.name}'")
        return column.to_numpy("float64", na_value=np.nan)
    return column.to_numpy()


def _dims(ndim: int) -> tuple[str, ...]:
    if ndim == 0:
        raise DataError("a single number is no set of events")
    return ("row", "feature")[:ndim] if ndim <= 2 else ("row", *(f"axis_{i}" for i in range(1, ndim)))


def _open_files(paths: Sequence[str | Path]) -> xr.Dataset:
    import xarray as xr

    _require_one_kind(paths)
    _require_files(paths)
    first = Path(paths[0])
    suffix = first.suffix.lower()
    if suffix in ARRAYS:
        if len(paths) > 1:
            raise DataError(f"{first}: give one {suffix} file at a time, or join them first")
        return _open_arrays(first)
    if suffix in GRIB:
        engine: str | None = "cfgrib"
    elif first.is_dir() or suffix == ".zarr" or "://" in str(paths[0]):
        engine = "zarr"
    elif suffix in NETCDF:
        engine = None
    else:
        kinds = ", ".join(sorted({*TABLES, *NETCDF, *GRIB, *ARRAYS, ".zarr"}))
        raise DataError(f"{first}: unknown kind of file; known: {kinds}")
    if len(paths) == 1:
        return _open_labelled(paths[0], engine)
    try:
        import dask

        with dask.config.set({"array.chunk-size": LAZY_CHUNK}):
            files = [str(path) for path in paths]
            return xr.open_mfdataset(files, engine=engine, combine="by_coords", chunks="auto", decode_timedelta=False)
    except Exception as error:
        # One that cannot be read on its own is to blame.
        for path in paths:
            _open_labelled(path, engine).close()
        raise DataError(f"{_named(paths)}: they do not go together: {first_line(error)}") from None


def _open_labelled(path: str | Path, engine: str | None) -> xr.Dataset:
    import xarray as xr

    try:
        # A period of waves in seconds is a number, not a time.
        dataset = xr.open_dataset(str(path), engine=engine, decode_timedelta=False)
    except ImportError as error:
        raise DataError(f"{path}: reading it needs another package: {first_line(error)}") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it") from None
    except Exception as error:
        if engine == "cfgrib" and "unrecognized engine" in str(error):
            raise DataError(f"{path}: reading GRIB needs cfgrib: pip install cfgrib") from None
        reason = "it is of no kind that xarray knows" if "did not find a match" in str(error) else first_line(error)
        kind = Path(path).suffix.lower() or "Zarr"
        raise DataError(f"{path}: not a readable {kind} file: {reason}") from None
    if "sciflow" in dataset.attrs:
        raise DataError(f"{path}: is already a store: open it with sf.open_store, or train on it")
    return dataset


def _named(paths: Sequence[str | Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _open_arrays(path: Path) -> xr.Dataset:
    import xarray as xr

    arrays = _load_arrays(path)
    if isinstance(arrays, np.ndarray):
        if arrays.ndim == 0:
            raise DataError(f"{path}: a single number is no set of events")
        return as_dataset(arrays)
    found = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: '{name}' in it is no array: save plain arrays, with np.savez")
        if array.ndim == 0:
            continue
        # Arrays of one length share their rows; what is inside a row is each array's own.
        rows = "row" if len(array) == _rows(arrays) else f"{name}_row"
        found[name] = ((rows, *(f"{name}_{i}" for i in range(1, array.ndim))), array)
    return xr.Dataset(found)


def _load_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except PermissionError:
        raise DataError(f"{path}: no permission to read it") from None
    except MemoryError:
        raise DataError(f"{path}: it claims more than memory holds: it is damaged, or belongs into a Zarr") from None
    except Exception as error:
        # Whatever NumPy raises on a header that is none.
        reason = first_line(error)
        if "allow_pickle" in reason and not _begins_with(path, b"\x80", b"PK", b"\x93NUMPY"):
            reason = "it begins as neither npy nor npz does"
        elif "pickle" in reason or "Python objects" in reason:
            raise DataError(f"{path}: it holds Python objects (a pickle), never read: save plain arrays") from None
        raise DataError(f"{path}: not a readable {path.suffix} file: {reason}") from None


def _rows(arrays: Mapping[str, np.ndarray]) -> int:
    return max(len(array) for array in arrays.values() if array.ndim)


def _begins_with(path: Path, *magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(8).startswith(magic)


def _require_one_kind(paths: Sequence[str | Path]) -> None:
    kinds = {Path(path).suffix.lower() for path in paths}
    if len(kinds) > 1:
        raise DataError(f"sources of several kinds ({', '.join(sorted(kinds))}): shard them one kind at a time")


def _require_files(paths: Sequence[str | Path]) -> None:
    for path in paths:
        if "://" in str(path):
            continue
        if not Path(path).exists():
            raise DataError(f"{path}: no such file")
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
