"""Turns the head of a GGUF file into checked metadata and a checked tensor table.

llama.cpp aborts the process on some malformed files, and ``gguf.GGUFReader`` needs seconds for a
large vocabulary. So the header is read here first, with a limit on every count, and nothing else
opens a file that did not pass.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from restkv_local.control_characters import show_path
from restkv_local.errors import ModelError

MAX_HEADER_BYTES = 256 << 20  # 256k tokens with merges take about 20 MiB
MAX_KEYS = 1 << 16
MAX_KEY_BYTES = 65535  # the format's own limit
MAX_STRING_BYTES = 16 << 20  # chat templates reach some 100 KiB
MAX_ARRAY_ITEMS = 1 << 26
MAX_KEPT_ITEMS = 4096  # longer arrays are vocabularies: counted and skipped
MAX_TENSORS = 1 << 16
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME, less the terminating zero
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
MAX_SPLITS = 1 << 12

_CHUNK = 1 << 20
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

# GGUF value type -> (name, struct code). 8 is a string, 9 an array.
_SCALARS: dict[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_STRING, _ARRAY = 8, 9

# ggml type -> (name, elements per block, bytes per block); retired types are absent on purpose.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """A metadata array: its element type and length, and its items when it is short."""

    item_type: str
    count: int
    items: tuple[int | float | bool | str, ...] | None


@dataclass(frozen=True, slots=True)
class TypedValue:
    """A metadata scalar or array with its GGUF type name."""

    type: str
    value: int | float | bool | str | ArrayValue


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: ``ne`` in ggml order, fastest first; ``offset`` in the file."""

    name: str
    path: Path
    ne: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int

    @property
    def type_name(self) -> str:
        """Name of the storage type, as llama.cpp prints it."""
        return TENSOR_TYPES[self.type][0]


@dataclass(frozen=True, slots=True)
class Header:
    """Checked head of one model: metadata of the first part, tensors of all parts.

    ``unspelled`` are the bytes that no token stands for, neither as ``<0xXX>`` nor as the byte itself.
    """

    path: Path
    parts: tuple[Path, ...]
    metadata: Mapping[str, TypedValue]
    tensors: Mapping[str, TensorInfo]
    file_bytes: int
    unspelled: tuple[int, ...]
    digest: bytes  # sha256 over the raw header bytes of all parts


def read_header(path: str | Path) -> Header:
    """Read and check the header of a GGUF model, all its parts included.

    Parameters
    ----------
    path : str or Path
        A GGUF file, or the first part of a split one. No tensor data is read.

    Returns
    -------
    Header
        Every offset and size in it lies inside its file.

    Raises
    ------
    ModelError
        If the file is missing, not a regular file, not a GGUF, malformed, truncated, or one part
        of a split model is missing or is not the first.
    """
    path = Path(path)
    first = _read_part(path)
    n_split = _small_uint(first, "split.count", 1)
    if n_split <= 1:
        return _merge([first])
    if n_split > MAX_SPLITS:
        raise ModelError(
            f"{show_path(path)}: split.count is {n_split}, the limit is {MAX_SPLITS} parts"
        )
    index = _small_uint(first, "split.no", 0)
    paths = _split_paths(path, index, n_split)
    if index != 0:
        raise ModelError(
            f"{show_path(path)} is part {index + 1} of {n_split}; "
            f"open the first part, {show_path(paths[0])}"
        )
    parts = [first]
    for number, part_path in enumerate(paths[1:], start=1):
        if not part_path.exists():
            raise ModelError(
                f"{show_path(path)}: part {number + 1} of {n_split} is missing; "
                f"put {part_path.name!r} beside it"
            )
        part = _read_part(part_path)
        found = _small_uint(part, "split.no", -1)
        if found != number:
            raise ModelError(
                f"{show_path(part_path)}: split.no is {found}, part {number + 1} of {n_split} "
                f"must say {number}"
            )
        parts.append(part)
    header = _merge(parts)
    declared = first.metadata.get("split.tensors.count")
    if declared is None or declared.value != len(header.tensors):
        raise ModelError(
            f"{show_path(path)}: split.tensors.count is {declared.value if declared else 'absent'} "
            f"but the {n_split} parts hold {len(header.tensors)} tensors"
        )
    return header


def _merge(parts: list[Header]) -> Header:
    if len(parts) == 1:
        return parts[0]
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, info in part.tensors.items():
            if name in tensors:
                raise ModelError(f"{show_path(part.path)}: tensor {name!r} is in two parts")
            tensors[name] = info
    return Header(
        path=parts[0].path,
        parts=tuple(part.path for part in parts),
        metadata=parts[0].metadata,
        tensors=tensors,
        file_bytes=sum(part.file_bytes for part in parts),
        unspelled=parts[0].unspelled,
        digest=hashlib.sha256(b"".join(part.digest for part in parts)).digest(),
    )


def _small_uint(header: Header, key: str, default: int) -> int:
    """Split numbers: llama.cpp asserts their type, so it is checked here."""
    entry = header.metadata.get(key)
    if entry is None:
        return default
    if entry.type != "uint16":
        raise ModelError(f"{show_path(header.path)}: {key} is a {entry.type}, it must be a uint16")
    assert isinstance(entry.value, int)
    return entry.value


def _split_paths(path: Path, index: int, n_split: int) -> list[Path]:
    suffix = f"-{index + 1:05d}-of-{n_split:05d}.gguf"
    if not path.name.endswith(suffix) or path.name == suffix:
        raise ModelError(
            f"{show_path(path)} is part {index + 1} of {n_split}, "
            f"so its name must end in {suffix!r}; rename it back"
        )
    prefix = path.name.removesuffix(suffix)
    return [path.with_name(f"{prefix}-{i + 1:05d}-of-{n_split:05d}.gguf") for i in range(n_split)]


def _read_part(path: Path) -> Header:
    shown = show_path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{shown} is a directory; give the path of a .gguf file in it")
        # A pipe or a device could block or never end.
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{shown} is not a regular file; give the path of a .gguf file")
        if status.st_size == 0:
            raise ModelError(f"{shown} is empty; download the model again")
        with path.open("rb") as stream:
            return _PartReader(path, stream, status.st_size).read()
    except FileNotFoundError:
        raise ModelError(f"no model at {shown}; give the path of a .gguf file, or 'demo'") from None
    except OSError as error:
        raise ModelError(f"cannot read {shown}: {error.strerror or error}") from error
    except ValueError as error:  # a path with a zero byte in it
        raise ModelError(f"cannot open {shown}: {error}") from error


class _PartReader:
    """Reads one file's header front to back; every step checks before it moves."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self._path = path
        self._stream = stream
        self._size = size
        self._buffer = bytearray()
        self._pos = 0
        self._doing = "the file magic"
        self._unspelled: tuple[int, ...] = tuple(range(256))

    def read(self) -> Header:
        if bytes(self._take(4)) != b"GGUF":
            raise self._error("is not a GGUF file (it does not start with 'GGUF')")
        self._doing = "the header"
        version = self._u32()
        if version & 0xFFFF == 0 and version != 0:
            raise self._error("is a big-endian GGUF; convert the model for this machine")
        if version not in (2, 3):
            raise self._error(f"has GGUF version {version}; versions 2 and 3 can be read")
        n_tensors = self._count("tensors", MAX_TENSORS)
        n_keys = self._count("metadata keys", MAX_KEYS)
        metadata = self._read_metadata(n_keys)
        alignment = self._alignment(metadata)
        tensors = self._read_tensors(n_tensors, alignment)
        return Header(
            path=self._path,
            parts=(self._path,),
            metadata=metadata,
            tensors=tensors,
            file_bytes=self._size,
            unspelled=self._unspelled,
            digest=hashlib.sha256(memoryview(self._buffer)[: self._pos]).digest(),
        )

    # metadata

    def _read_metadata(self, n_keys: int) -> dict[str, TypedValue]:
        metadata: dict[str, TypedValue] = {}
        for index in range(n_keys):
            self._doing = f"metadata key {index}"
            key = self._string(MAX_KEY_BYTES)
            if not key:
                raise self._error(f"metadata key {index} is empty")
            if key in metadata:
                raise self._error(f"metadata key {key!r} appears twice")
            self._doing = f"the value of {key!r}"
            metadata[key] = self._value(key)
        return metadata

    def _value(self, key: str) -> TypedValue:
        kind = self._u32()
        if kind == _STRING:
            return TypedValue("string", self._string(MAX_STRING_BYTES))
        if kind == _ARRAY:
            return TypedValue("array", self._array(key))
        if kind not in _SCALARS:
            raise self._error(f"{key!r} has the unknown value type {kind}")
        name, code = _SCALARS[kind]
        (value,) = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))
        return TypedValue(name, value)

    def _array(self, key: str) -> ArrayValue:
        kind = self._u32()
        if kind != _STRING and kind not in _SCALARS:
            raise self._error(f"{key!r} is an array of the unsupported type {kind}")
        count = self._u64()
        if count > MAX_ARRAY_ITEMS:
            raise self._error(f"{key!r} has {count} items, the limit is {MAX_ARRAY_ITEMS}")
        if kind == _STRING:
            # llama.cpp asserts that no two tokens have the same text.
            if key == "tokenizer.ggml.tokens":
                seen = self._skip_strings(key, count, unique=True)
                self._unspelled = tuple(
                    byte
                    for byte in range(256)
                    if seen.isdisjoint((b"<0x%02X>" % byte, bytes([byte])))
                )
            else:
                self._skip_strings(key, count, unique=False)
            return ArrayValue("string", count, None)
        name, code = _SCALARS[kind]
        raw = self._take(count * struct.calcsize("<" + code))
        if count > MAX_KEPT_ITEMS:
            return ArrayValue(name, count, None)
        return ArrayValue(name, count, struct.unpack(f"<{count}{code}", raw))

    def _skip_strings(self, key: str, count: int, *, unique: bool) -> set[bytes]:
        """Skip an array of strings; return them if they have to be unique."""
        # Each string costs its 8-byte length at least: a false count fails before the loop.
        if count * 8 > self._size - self._pos:
            raise self._truncated()
        buffer, unpack = self._buffer, _U64.unpack_from
        pos, have = self._pos, len(self._buffer)
        seen: set[bytes] = set()
        for index in range(count):
            if pos + 8 > have:
                have = self._fill(pos + 8)
            start = pos + 8
            pos = start + unpack(buffer, pos)[0]
            if pos - start > MAX_STRING_BYTES:
                raise self._error(
                    f"{key!r} holds a string of {pos - start} bytes, "
                    f"the limit is {MAX_STRING_BYTES}"
                )
            if pos > have:
                have = self._fill(pos)
            if unique:
                # As llama.cpp sees them: cut at a zero byte, empty ones named by their index.
                token = bytes(buffer[start:pos]).split(b"\0", 1)[0] or b"[EMPTY_%d]" % index
                if token in seen:
                    raise self._error(
                        f"token {index} repeats the text {token.decode(errors='replace')!r}"
                    )
                seen.add(token)
        self._pos = pos
        return seen

    def _alignment(self, metadata: Mapping[str, TypedValue]) -> int:
        entry = metadata.get("general.alignment")
        if entry is None:
            return 32
        if entry.type != "uint32":
            raise self._error(f"general.alignment is a {entry.type}, it must be a uint32")
        value = entry.value
        assert isinstance(value, int)
        if value == 0 or value & (value - 1) or value > MAX_ALIGNMENT:
            raise self._error(f"general.alignment is {value}, it must be a power of 2")
        return value

    # tensors

    def _read_tensors(self, n_tensors: int, alignment: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for index in range(n_tensors):
            self._doing = f"tensor {index}"
            name = self._string(MAX_TENSOR_NAME_BYTES)
            if not name:
                raise self._error(f"tensor {index} has an empty name")
            if name in tensors:
                raise self._error(f"tensor {name!r} appears twice")
            self._doing = f"tensor {name!r}"
            info = self._tensor(name)
            # llama.cpp wants tensor data back to back in table order.
            if info.offset != expected:
                raise self._error(
                    f"tensor {name!r} is at data offset {info.offset}, it must be at {expected}"
                )
            tensors[name] = info
            expected = _pad(expected + info.n_bytes, alignment)
        start = _pad(self._pos, alignment)
        for name, info in tensors.items():
            end = start + info.offset + info.n_bytes
            if end > self._size:
                raise self._error(
                    f"is truncated: tensor {name!r} ends at byte {end} of a file of {self._size}; "
                    "download the model again"
                )
            tensors[name] = TensorInfo(
                name, info.path, info.ne, info.type, start + info.offset, info.n_bytes
            )
        return tensors

    def _tensor(self, name: str) -> TensorInfo:
        n_dims = self._u32()
        if n_dims > MAX_DIMS:
            raise self._error(f"tensor {name!r} has {n_dims} dimensions, the limit is {MAX_DIMS}")
        ne = tuple(self._u64() for _ in range(n_dims)) or (1,)
        kind = self._u32()
        offset = self._u64()
        if kind not in TENSOR_TYPES:
            raise self._error(f"tensor {name!r} has the unknown storage type {kind}")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        n_elements = 1
        for size in ne:
            n_elements *= size
            # The product is checked at each step: Python would go on, C would wrap.
            if size == 0 or n_elements >= 1 << 63:
                raise self._error(f"tensor {name!r} has the impossible shape {list(ne)}")
        if ne[0] % block:
            raise self._error(
                f"tensor {name!r} has rows of {ne[0]} elements; {type_name} needs a multiple "
                f"of {block}"
            )
        return TensorInfo(name, self._path, ne, kind, offset, n_elements // block * block_bytes)

    # bytes

    def _u32(self) -> int:
        value: int = _U32.unpack(self._take(4))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack(self._take(8))[0]
        return value

    def _count(self, noun: str, limit: int) -> int:
        count = self._u64()
        if count > limit:
            raise self._error(f"claims {count} {noun}, the limit is {limit}")
        return count

    def _string(self, limit: int) -> str:
        length = self._u64()
        if length > limit:
            raise self._error(f"{self._doing} has {length} bytes, the limit is {limit}")
        return bytes(self._take(length)).decode("utf-8", errors="replace")

    def _take(self, n_bytes: int) -> bytearray:
        end = self._pos + n_bytes
        if end > len(self._buffer):
            self._fill(end)
        taken = self._buffer[self._pos : end]
        self._pos = end
        return taken

    def _fill(self, end: int) -> int:
        """Grow the buffer to reach ``end``; return its new length."""
        if end > self._size:
            raise self._truncated()
        if end > MAX_HEADER_BYTES:
            raise self._error(f"has a header of more than {MAX_HEADER_BYTES >> 20} MiB")
        have = len(self._buffer)
        self._buffer += self._stream.read(max(end - have, _CHUNK))
        if len(self._buffer) < end:  # the file shrank while it was read
            raise self._truncated()
        return len(self._buffer)

    def _truncated(self) -> ModelError:
        return self._error(
            f"is truncated: it ends inside {self._doing}, after {self._size} bytes; "
            "download the model again"
        )

    def _error(self, problem: str) -> ModelError:
        joint = " " if problem.startswith(("is ", "has ", "claims ")) else ": "
        return ModelError(f"{show_path(self._path)}{joint}{problem}")


def _pad(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment


def get_int(metadata: Mapping[str, TypedValue], key: str) -> int | None:
    """Metadata integer, or None when the key is absent or holds something else."""
    entry = metadata.get(key)
    if entry is None or isinstance(entry.value, bool) or not isinstance(entry.value, int):
        return None
    return entry.value


def get_float(metadata: Mapping[str, TypedValue], key: str) -> float | None:
    """Metadata float, or None when the key is absent or holds something else."""
    entry = metadata.get(key)
    return entry.value if entry is not None and isinstance(entry.value, float) else None


def get_bool(metadata: Mapping[str, TypedValue], key: str) -> bool | None:
    """Metadata bool, or None when the key is absent or holds something else."""
    entry = metadata.get(key)
    return entry.value if entry is not None and isinstance(entry.value, bool) else None


def get_str(metadata: Mapping[str, TypedValue], key: str) -> str | None:
    """Metadata string, or None when the key is absent or holds something else."""
    entry = metadata.get(key)
    return entry.value if entry is not None and isinstance(entry.value, str) else None


def get_array(metadata: Mapping[str, TypedValue], key: str) -> ArrayValue | None:
    """Metadata array, or None when the key is absent or holds something else."""
    entry = metadata.get(key)
    return entry.value if entry is not None and isinstance(entry.value, ArrayValue) else None
