import pytest

from tests import builders
from tests.engine.conftest import open_llama, tokens  # noqa: F401

TINY = builders.llama(n_head=4, n_head_kv=2, head_dim=32)
BPE = builders.qwen2()


@pytest.fixture
def llm(open_llama):  # noqa: F811
    """Return a tiny model whose bytes are tokens of their own."""
    return open_llama(TINY)


@pytest.fixture(scope="session")
def demo():
    """Return the demo model, as a script for llama-cpp-python would open it."""
    from restkv_local import Llama

    with Llama(model_path="demo", budget=256, n_batch=256, n_threads=1, seed=7) as llm:
        yield llm


def text_of(result):
    """Return the text of a completion or of a whole stream."""
    if isinstance(result, dict):
        return result["choices"][0]["text"]
    return "".join(chunk["choices"][0]["text"] for chunk in result)
