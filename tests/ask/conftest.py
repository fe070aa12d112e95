from tests.engine.conftest import open_llama, tokens  # noqa: F401
