"""The bytes of a shard: its chunks, each compressed and with a checksum, and the index that says where they lie.

Zarr's own writer would do, but is four times as slow and holds a shard three times over. Source: the Zarr v3
specifications of the sharding codec 1.0 and the CRC32C codec 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc
from zarr.codecs import BloscCodec, Crc32cCodec

__all__ = ["codecs", "encode_shard"]

LEVEL = 5
MISSING = np.iinfo(np.uint64).max


def codecs(dtype: np.dtype) -> list[BloscCodec | Crc32cCodec]:
    """How chunks are encoded, in the words of Zarr's metadata."""
    return [BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=LEVEL, shuffle="bitshuffle"), Crc32cCodec()]


def encode_shard(rows: np.ndarray, chunk_rows: int, shard_rows: int) -> Iterator[bytes]:
    """Yield the bytes of a shard, a chunk at a time.

    Args:
        rows: ``[n, *event_shape]`` with ``n <= shard_rows``; only the last shard of an array has fewer.
        chunk_rows: Rows of a chunk.
        shard_rows: Rows of a shard, a multiple of ``chunk_rows``.

    Example:
        >>> *chunks, index = encode_shard(np.zeros((3, 2), "<f4"), chunk_rows=2, shard_rows=6)
        >>> len(chunks), len(index)
        (2, 52)
    """
    blosc = Blosc(cname="lz4", clevel=LEVEL, shuffle=BITSHUFFLE)
    index = np.full((shard_rows // chunk_rows, 2), MISSING, "<u8")
    offset = 0
    for place, start in enumerate(range(0, len(rows), chunk_rows)):
        chunk = np.ascontiguousarray(rows[start : start + chunk_rows], rows.dtype.newbyteorder("<"))
        if len(chunk) < chunk_rows:
            # Chunks are of one size; what is beyond the last row is never read.
            padding = np.full((chunk_rows - len(chunk), *chunk.shape[1:]), np.nan, chunk.dtype)
            chunk = np.concatenate([chunk, padding])
        encoded = _with_checksum(blosc.encode(chunk))
        index[place] = offset, len(encoded)
        offset += len(encoded)
        yield encoded
    yield _with_checksum(index.tobytes())


def _with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")
