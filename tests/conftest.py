import os
import signal

import pytest

from restkv_local.errors import RestKVError


def _library_problem():
    from restkv_local.native._library import library_folder

    try:
        library_folder()
    except RestKVError as error:
        return str(error)
    return None


def _demo_problem():
    from restkv_local.model.demo import resolve_model

    try:
        resolve_model("demo")
    except RestKVError as error:
        return str(error)
    return None


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="tiny models live on the GPU")


@pytest.fixture
def n_gpu_layers(request):
    """Layers that the models of native and engine tests put on the GPU: with --gpu all."""
    return -1 if request.config.getoption("--gpu") else 0


def pytest_configure():
    # A background job inherits an ignored SIGINT, and so would every program that the tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    # Where everything must be there (CI), a missing part is a failure, not a skip.
    if os.environ.get("CI"):
        problems = {}
    else:
        problems = {"native": _library_problem(), "model": _demo_problem() or _library_problem()}
    expression = config.getoption("-m")
    for item in items:
        for marker, problem in problems.items():
            if problem and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=problem))
        if item.get_closest_marker("slow") and "slow" not in expression:
            item.add_marker(pytest.mark.skip(reason="takes minutes: make test-slow"))
        if item.get_closest_marker("gpu") and not config.getoption("--gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test touches the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
