"""The bytes of a shard: its chunks, each compressed and with a checksum, and the index that says where they lie.

Any Zarr reads them. We do it ourselves for what the libraries leave open: zarr-python holds a shard three times over to
write it and takes four times as long, and zarrs leaves the checksums out where it reads a part of a shard. Source: the
Zarr v3 specifications of the sharding codec 1.0 and the CRC32C codec 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc
from zarr.codecs import BloscCodec, Crc32cCodec

__all__ = ["codecs", "decode_chunk", "decode_index", "encode_shard", "index_bytes"]

LEVEL = 5
CHECKSUM_BYTES = 4
MISSING = np.iinfo(np.uint64).max


def codecs(dtype: np.dtype) -> list[BloscCodec | Crc32cCodec]:
    """How chunks are encoded, in the words of Zarr's metadata."""
    return [BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=LEVEL, shuffle="bitshuffle"), Crc32cCodec()]


def encode_shard(rows: np.ndarray, chunk_rows: int, shard_rows: int) -> Iterator[bytes]:
    """Yield the bytes of a shard, a chunk at a time, and its index at the end.

    Args:
        rows: ``[n, *event_shape]`` with ``n <= shard_rows``; only the last shard of an array has fewer.
        chunk_rows: Rows of a chunk.
        shard_rows: Rows of a shard, a multiple of ``chunk_rows``.

    Example:
        >>> *chunks, index = encode_shard(np.ones((3, 2), "<f4"), chunk_rows=2, shard_rows=6)
        >>> len(chunks), len(index) == index_bytes(3)
        (2, True)
        >>> decode_chunk(chunks[0], out := np.zeros((2, 2), "<f4"))
        >>> out.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    blosc = Blosc(cname="lz4", clevel=LEVEL, shuffle=BITSHUFFLE)
    index = np.full((shard_rows // chunk_rows, 2), MISSING, "<u8")
    offset = 0
    for place, start in enumerate(range(0, len(rows), chunk_rows)):
        chunk = np.ascontiguousarray(rows[start : start + chunk_rows], rows.dtype.newbyteorder("<"))
        if len(chunk) < chunk_rows:
            # Chunks are of one size; what is beyond the last row is never read.
            padding = np.zeros((chunk_rows - len(chunk), *chunk.shape[1:]), chunk.dtype)
            chunk = np.concatenate([chunk, padding])
        encoded = _with_checksum(blosc.encode(chunk))
        index[place] = offset, len(encoded)
        offset += len(encoded)
        yield encoded
    yield _with_checksum(index.tobytes())


def index_bytes(num_chunks: int) -> int:
    """Length of the index at the end of a shard."""
    return num_chunks * 16 + CHECKSUM_BYTES


def decode_index(data: bytes) -> np.ndarray:
    """Return the offset and length of every chunk of a shard, ``[num_chunks, 2]``.

    Raises:
        ValueError: It is damaged.
    """
    return np.frombuffer(_without_checksum(data), "<u8").reshape(-1, 2)


def decode_chunk(data: bytes, out: np.ndarray) -> None:
    """Decode a chunk into memory that is there.

    Raises:
        ValueError: It is damaged.
    """
    Blosc().decode(_without_checksum(data), out)


def _with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little")


def _without_checksum(data: bytes) -> np.ndarray:
    content = np.frombuffer(data, np.uint8)[:-CHECKSUM_BYTES]
    if google_crc32c.value(content) != int.from_bytes(data[-CHECKSUM_BYTES:], "little"):
        raise ValueError("the checksum does not fit the data")
    return content
