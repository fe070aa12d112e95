"""Writes GGUF bytes by hand, so that a test can get any field wrong."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

TYPES = {
    "uint8": (0, "B"),
    "uint16": (2, "H"),
    "uint32": (4, "I"),
    "int32": (5, "i"),
    "float32": (6, "f"),
    "bool": (7, "?"),
    "uint64": (10, "Q"),
}


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind, value):
    code, letter = TYPES[kind]
    return struct.pack("<I" + letter, code, value)


def text(value):
    return struct.pack("<I", 8) + string(value)


def strings(values, count=None):
    head = struct.pack("<IIQ", 9, 8, len(values) if count is None else count)
    return head + b"".join(string(value) for value in values)


def array(kind, values, count=None):
    code, letter = TYPES[kind]
    head = struct.pack("<IIQ", 9, code, len(values) if count is None else count)
    return head + struct.pack(f"<{len(values)}{letter}", *values)


def tensor(name, ne, *, kind=0, offset=0, n_dims=None):
    head = string(name) + struct.pack("<I", len(ne) if n_dims is None else n_dims)
    return head + struct.pack(f"<{len(ne)}QIQ", *ne, kind, offset)


def model_keys(**changes):
    """Metadata of the smallest llama model, key to encoded value; a None removes one."""
    keys = {
        "general.architecture": text("llama"),
        "llama.context_length": scalar("uint32", 512),
        "llama.embedding_length": scalar("uint32", 64),
        "llama.block_count": scalar("uint32", 2),
        "llama.feed_forward_length": scalar("uint32", 64),
        "llama.attention.head_count": scalar("uint32", 2),
        "llama.attention.head_count_kv": scalar("uint32", 1),
        "llama.rope.dimension_count": scalar("uint32", 32),
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.tokens": strings(["<unk>", "<s>", "</s>", "a"]),
    }
    keys.update({name.replace("__", "."): value for name, value in changes.items()})
    return {name: value for name, value in keys.items() if value is not None}


@dataclass
class RawGGUF:
    """One file as fields; ``write`` puts them together without checking anything."""

    magic: bytes = b"GGUF"
    version: int = 3
    keys: list = field(default_factory=lambda: list(model_keys().items()))
    tensors: list = field(default_factory=lambda: [tensor("token_embd.weight", (64, 4))])
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32
    data: bytes = bytes(64 * 4 * 4)

    def encode(self):
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(string(name) + value for name, value in self.keys)
        head += b"".join(self.tensors)
        head += bytes(-len(head) % self.alignment)
        return head + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path


def model(**changes):
    """File with the smallest llama model's keys, changed; ``__`` stands for a dot."""
    return RawGGUF(keys=list(model_keys(**changes).items()))
