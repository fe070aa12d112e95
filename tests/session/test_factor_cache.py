"""Factors of a model's weights are computed once; whatever happens to the folder, they are the same."""

import logging
import os

import numpy as np
import pytest

from restkv_local.model.model_file import read_model
from restkv_local.model.output_factors import OutputMatrices
from restkv_local.storage import factor_cache
from restkv_local.storage.factor_cache import default_cache_dir, load_output_factors
from tests import builders


@pytest.fixture
def tiny(tmp_path):
    return builders.llama(head_dim=64).write(tmp_path / "m.gguf")


def load_all(path, **options):
    return dict(load_output_factors(read_model(path), **options))


def test_the_second_load_computes_nothing_and_is_equal(tmp_path, tiny, monkeypatch):
    cache = tmp_path / "cache"
    first = load_all(tiny, cache_dir=cache)
    monkeypatch.delattr(OutputMatrices, "factor")
    second = load_all(tiny, cache_dir=cache)
    assert first.keys() == second.keys()
    for layer in first:
        np.testing.assert_array_equal(first[layer], second[layer])
    assert second[0].flags.writeable
    assert [path.suffix for path in cache.iterdir()] == [".factors"]


@pytest.mark.parametrize("damage", ["cut", "flip", "head", "longer", "empty"])
def test_a_damaged_cache_file_is_rebuilt(tmp_path, tiny, caplog, damage):
    cache = tmp_path / "cache"
    first = load_all(tiny, cache_dir=cache)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    data = bytearray(whole)
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "head":
        data[20] ^= 1
    path.write_bytes(
        {"cut": data[:-4], "longer": data + b"\0", "empty": b""}.get(damage, bytes(data))
    )
    with caplog.at_level(logging.WARNING):
        again = load_all(tiny, cache_dir=cache)
    assert "rebuilt" in caplog.text
    np.testing.assert_array_equal(again[1], first[1])
    assert path.read_bytes() == whole


def test_a_cache_file_pruned_while_it_is_opened_costs_nothing(tmp_path, tiny, monkeypatch):
    """Another process may remove the file between any two steps of this one."""
    cache = tmp_path / "cache"
    first = load_all(tiny, cache_dir=cache)
    monkeypatch.setattr(factor_cache, "mark_used", lambda path: path.unlink())
    again = load_all(tiny, cache_dir=cache)
    np.testing.assert_array_equal(again[1], first[1])
    assert not list(cache.iterdir())


def test_a_cache_file_that_ends_while_it_is_read_is_gone_on_with_by_computing(
    tmp_path, tiny, monkeypatch, caplog
):
    cache = tmp_path / "cache"
    first = load_all(tiny, cache_dir=cache)
    (path,) = cache.iterdir()
    n_bytes = path.stat().st_size
    # After it was checked, and inside the second of two layers.
    monkeypatch.setattr(factor_cache, "mark_used", lambda path: os.truncate(path, n_bytes - 4))
    with caplog.at_level(logging.WARNING):
        again = load_all(tiny, cache_dir=cache)
    assert "from layer 1 on: it has become shorter" in caplog.text
    assert again.keys() == first.keys()
    for layer in first:
        np.testing.assert_array_equal(again[layer], first[layer])


def test_a_changed_model_gets_factors_of_its_own(tmp_path, tiny):
    cache = tmp_path / "cache"
    first = load_all(tiny, cache_dir=cache)
    builders.llama(head_dim=64, seed=1).write(tiny)
    second = load_all(tiny, cache_dir=cache)
    assert not np.array_equal(first[0], second[0])
    assert len(list(cache.iterdir())) == 2


def test_stopping_early_leaves_no_file(tmp_path, tiny):
    stream = load_output_factors(read_model(tiny), cache_dir=tmp_path / "cache")
    next(stream)
    stream.close()
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_least_recently_used_file_goes_first(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    models = [builders.llama(seed=i).write(tmp_path / f"{i}.gguf") for i in range(3)]
    paths = []
    for age, model in enumerate(models[:2]):
        load_all(model, cache_dir=cache)
        (new,) = set(cache.iterdir()) - set(paths)
        paths.append(new)
        os.utime(new, (1000 + age, 1000 + age))
    size = paths[0].stat().st_size
    load_all(models[0], cache_dir=cache)  # used again: now the youngest
    monkeypatch.setattr(factor_cache, "LIMIT_BYTES", 2 * size)
    load_all(models[2], cache_dir=cache)
    assert paths[0].exists()
    assert not paths[1].exists()
    assert len(list(cache.iterdir())) == 2


def test_factors_above_the_limit_are_not_cached_and_said_so(tmp_path, tiny, monkeypatch, caplog):
    monkeypatch.setattr(factor_cache, "LIMIT_BYTES", 1000)
    with caplog.at_level(logging.WARNING):
        assert list(load_all(tiny, cache_dir=tmp_path / "cache")) == [0, 1]
    assert "not cached" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_a_cache_folder_that_cannot_be_made_costs_only_a_warning(tmp_path, tiny, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        factors = load_all(tiny, cache_dir=tmp_path / "file" / "cache")
    assert list(factors) == [0, 1]
    assert "cannot write the factor cache" in caplog.text


def test_a_full_disk_costs_only_a_warning(tmp_path, tiny, caplog):
    """A limit on file size fails write() in the middle, as a full disk does."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            factors = load_all(tiny, cache_dir=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(factors) == [0, 1]
    assert "cannot write the factor cache" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_default_cache_folder_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir().name == "factors"
    assert "restkv-local" in default_cache_dir().parts
