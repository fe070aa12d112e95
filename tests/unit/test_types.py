import ast
from pathlib import Path

import numpy as np
import pytest

import restkv_local.policies
from restkv_local.types import Observation, ObservationRequest, half_window_means

POSITIONS = np.zeros((2, 5), np.int32)


@pytest.mark.parametrize("reductions", [(), ("square",), ("entropy", "mean")])
def test_a_distance_needs_a_reduction_of_the_attention(reductions):
    with pytest.raises(ValueError, match="needs a reduction of the attention first"):
        ObservationRequest(reductions=reductions, distance="aggregate")


def test_drift_needs_a_number_of_keys():
    with pytest.raises(ValueError, match="top_k=0"):
        ObservationRequest(reductions=("mean",), drift=True)


def test_the_maximum_has_no_weights():
    with pytest.raises(ValueError, match="'max'"):
        ObservationRequest(reductions=("max",)).weights("max", 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"positions": np.zeros(5, np.int32)},
        {"attention": {"mean": np.zeros((3, 5), np.float32)}},
        {"attention": {"mean": np.zeros((4, 6), np.float32)}},
        {"distance": np.zeros((4, 2, 5), np.float32)},
        {"indicator": np.zeros((1, 5), np.float32)},
        {"drift": np.zeros((4, 5), np.float32)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_arrays_of_another_shape_do_not_enter(fields):
    with pytest.raises(ValueError, match="got"):
        Observation(**{"layer": 0, "n_obs": 1, "n_window": 1, "positions": POSITIONS} | fields)


@pytest.mark.parametrize(
    ("per_query", "halves"),
    [([[7]], [[7, 7]]), ([[1, 5]], [[1, 5]]), ([[1, 2, 4]], [[1, 3]]), ([[0, 2, 4, 6]], [[1, 5]])],
)
def test_halves_are_older_and_newer(per_query, halves):
    assert half_window_means(np.array(per_query, np.float32)).tolist() == halves


def test_deciding_never_imports_files_or_the_native_half():
    """Scores and plans must run on any machine: NumPy, the standard library, and each other."""
    package = Path(next(iter(restkv_local.policies.__path__))).parent
    files = [package / name for name in ("types.py", "planning.py", "reference.py")]
    files += [*package.glob("policies/*.py"), *package.glob("allocators/*.py")]
    ours = {"types", "errors", "config", "planning", "policies", "allocators", "reference"}
    others = {"__future__", "abc", "collections", "dataclasses", "functools", "itertools", "math"}
    others |= {"numpy", "typing"}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                head, *rest = name.split(".")
                allowed = rest[0] in ours if head == "restkv_local" else head in others
                assert allowed, f"{path.name} imports {name}"
