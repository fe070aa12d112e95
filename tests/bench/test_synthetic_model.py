"""Random weights in a known shape: our reader and llama.cpp take the file, the disk gets all of it or nothing."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from restkv_local import Llama
from restkv_local.errors import ConfigError, ModelError
from restkv_local.model.model_file import check_supported, kv_bytes_per_token, read_model
from restkv_local.model.synthetic_model import (
    SHAPES,
    SMALL_VOCAB,
    SyntheticShape,
    ensure_synthetic,
    synthetic_bytes,
    synthetic_path,
    write_synthetic,
)

TINY = SyntheticShape(
    arch="llama", n_layer=2, n_embd=128, n_head=4, n_head_kv=2, head_dim=32, n_ff=256, n_vocab=300,
    n_ctx_train=2048, rope_freq_base=1e4,
)  # fmt: skip
VARIANTS = {
    "llama": {},
    "factors": {"rope_factors": True},
    "tied": {"tied_output": True},
    "qwen2": {"arch": "qwen2", "qkv_bias": True, "tied_output": True},
    "qwen3": {"arch": "qwen3", "qk_norm": True},
}


def variant(name):
    fields = {field: getattr(TINY, field) for field in TINY.__dataclass_fields__}
    return SyntheticShape(**(fields | VARIANTS[name]))


@pytest.mark.native
@pytest.mark.parametrize("weights", ["q4_0", "q8_0", "f16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_llama_cpp_loads_it_and_its_logits_are_finite_and_spread(tmp_path, name, weights):
    path = tmp_path / "m.gguf"
    write_synthetic(variant(name), path, weights=weights)
    with Llama(path, budget=64, n_recent=8, n_obs=8, n_guide=0, n_ubatch=64, n_threads=1) as llama:
        tokens = llama.native.tokenize("the harbour master said nothing " * 10, add_special=True)
        assert tokens[0] == 0
        assert len(tokens) > 250
        llama.engine.open(len(tokens), 8, 0)
        llama.engine.read(tokens)
        logits = llama.native.logits()
        assert np.isfinite(logits).all()
        assert 0.2 < logits.std() < 5
        assert llama.engine.counters.events > 0


@pytest.mark.parametrize("vocabulary", ["full", "small"])
def test_our_reader_sees_the_shape_that_was_asked_for(tmp_path, vocabulary):
    path = tmp_path / "new" / "folder" / "m.gguf"
    write_synthetic(TINY, path, name="tiny", weights="q8_0", vocabulary=vocabulary)
    shape = read_model(path)
    check_supported(shape)
    assert shape.name == "tiny (random weights)"
    assert (shape.n_layer, shape.n_head, shape.n_head_kv, shape.head_dim_k) == (2, 4, 2, 32)
    assert (shape.n_embd, shape.n_ctx_train, shape.quantisation) == (128, 2048, "Q8_0")
    assert shape.n_vocab == (300 if vocabulary == "full" else SMALL_VOCAB)


@pytest.mark.parametrize("weights", ["q4_0", "q8_0", "f16"])
def test_the_size_said_before_is_the_size_written(tmp_path, weights):
    path = tmp_path / "m.gguf"
    write_synthetic(TINY, path, weights=weights)
    tensors = GGUFReader(path).tensors
    header = path.stat().st_size - synthetic_bytes(TINY, weights, "full")
    assert 0 < header < 32 << 10
    assert sum(int(tensor.n_bytes) for tensor in tensors) <= synthetic_bytes(TINY, weights, "full")


@pytest.mark.parametrize("weights", ["q4_0", "q8_0", "f16"])
def test_weights_have_no_mean_and_keep_the_size_of_their_input(tmp_path, weights):
    path = tmp_path / "m.gguf"
    write_synthetic(TINY, path, weights=weights)
    for tensor in GGUFReader(path).tensors:
        if len(tensor.shape) < 2:
            assert (tensor.data == 1).all()
            continue
        values = dequantize(tensor.data, tensor.tensor_type)
        scale = 2 if ".attn_q." in tensor.name or ".attn_k." in tensor.name else 1
        scale = np.sqrt(128) if tensor.name == "token_embd.weight" else scale
        n_in = values.shape[1]
        assert np.sqrt((values**2).mean()) == pytest.approx(scale / np.sqrt(n_in), rel=0.03)
        assert abs(values.mean()) < 0.05 * values.std()


def test_the_same_seed_gives_the_same_file(tmp_path):
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write_synthetic(TINY, path, seed=seed)
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second
    assert first != third


# f16 GiB of K and V at 32k tokens, as published for these models
@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("llama-3.1-8b", 128), ("mistral-7b", 128), ("qwen2.5-7b", 56), ("qwen2.5-0.5b", 12),
        ("smollm2-135m", 22.5), ("smollm2-360m", 40), ("qwen3-8b", 144), ("llama-3.2-1b", 32),
    ],
)  # fmt: skip
def test_known_shapes_store_the_rows_that_are_known(name, kib):
    shape = SHAPES[name]
    assert 2 * 2 * shape.n_layer * shape.n_head_kv * shape.head_dim == kib * 1024


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", 8.03), ("llama-3.2-1b", 1.24), ("llama-3.2-3b", 3.21),
        ("mistral-7b", 7.25), ("qwen2.5-0.5b", 0.494), ("qwen2.5-1.5b", 1.54),
        ("qwen2.5-3b", 3.09), ("qwen2.5-7b", 7.62), ("qwen3-0.6b", 0.596), ("qwen3-4b", 4.02),
        ("qwen3-8b", 8.19), ("smollm2-135m", 0.1345), ("smollm2-360m", 0.362),
        ("smollm2-1.7b", 1.71),
    ],
)  # fmt: skip
def test_known_shapes_have_as_many_weights_as_the_models(name, billions):
    n_weights = synthetic_bytes(SHAPES[name], "f16", "full") / 2
    assert n_weights == pytest.approx(billions * 1e9, rel=0.005)
    assert set(SHAPES) <= {case[0] for case in COUNTED}


COUNTED = test_known_shapes_have_as_many_weights_as_the_models.pytestmark[0].args[1]


def test_a_known_shape_is_written_once_to_the_cache_folder(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    said = []
    options = {
        "weights": "q8_0",
        "vocabulary": "small",
        "on_write": lambda *args: said.append(args),
    }
    path = ensure_synthetic("tiny", **options)
    written = path.stat().st_mtime_ns
    assert ensure_synthetic("tiny", **options) == path
    assert path.stat().st_mtime_ns == written
    assert said == [(path, synthetic_bytes(TINY, "q8_0", "small"))]
    assert path.name == "tiny-q8_0-small-vocabulary.gguf"
    assert path != synthetic_path("tiny", "q8_0", "full")
    assert kv_bytes_per_token(read_model(path)) == 2 * 2 * 2 * 2 * 32


def test_an_unknown_shape_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"one of llama-3.1-8b, .*; got shape='llama-9'"):
        ensure_synthetic("llama-9")


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    path = tmp_path / "m.gguf"
    with pytest.raises(ModelError, match=r"needs 4.. GiB, 1.0 GiB are free on its disk; free some"):
        write_synthetic(SHAPES["llama-3.1-8b"], path)
    assert list(tmp_path.iterdir()) == []


WRITE_LIMITED = f"""
import resource, sys
from pathlib import Path
from restkv_local.errors import ModelError
from restkv_local.model.synthetic_model import SyntheticShape, write_synthetic
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_synthetic({TINY!r}, Path(sys.argv[1]))
except ModelError as error:
    print(error)
"""


# In the header, between two tensors, and in the last one.
@pytest.mark.skipif(sys.platform == "win32", reason="limits")
@pytest.mark.parametrize("limit", [100, 20_000, 180_000])
def test_a_file_that_cannot_grow_is_one_line_and_leaves_nothing(tmp_path, limit):
    path = tmp_path / "m.gguf"
    whole = tmp_path / "whole.gguf"
    write_synthetic(TINY, whole)
    assert limit < whole.stat().st_size
    whole.unlink()
    command = [sys.executable, "-c", WRITE_LIMITED, str(path), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.startswith(f"cannot write {path}: ")
    assert result.stdout.endswith("; nothing is left of it\n")
    assert result.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("restkv_local.model.synthetic_model._draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(TINY, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot write .*; nothing is left of it"):
        write_synthetic(TINY, tmp_path / "file" / "m.gguf")
