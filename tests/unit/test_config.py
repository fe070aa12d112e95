import dataclasses
import subprocess
import sys

import pytest

from restkv_local.config import (
    DEFAULTS,
    BudgetSpec,
    Config,
    check_budget,
    parse_budget,
    resolve_budget,
)
from restkv_local.errors import ConfigError, RestKVError

GIB = 2**30


def test_defaults_are_the_documented_ones():
    assert dataclasses.asdict(DEFAULTS) == {
        "budget": 2048,
        "policy": "restkv",
        "allocation": "uniform",
        "prefill": "bounded",
        "positions": "auto",
        "guide": "auto",
        "scoring": "native",
        "n_sink": 4,
        "n_recent": 32,
        "n_obs": 32,
        "n_guide": 64,
        "n_ubatch": 512,
        "kernel": 21,
        "alpha": 0.3,
        "scale": 2000.0,
        "tau": 1.0,
        "order": "aggregate",
        "past_only": False,
        "use_wo": True,
        "guide_reduction": "max",
        "n_predict": 512,
        "temp": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "repeat_penalty": 1.0,
        "seed": -1,
        "undo_mib": 1024,
        "n_threads": 0,
        "n_gpu_layers": 0,
        "type_k": "f16",
        "type_v": "f16",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_sink", -1),
        ("n_recent", 0),
        ("n_obs", 0),
        ("n_guide", -1),
        ("n_ubatch", 0),
        ("kernel", 0),
        ("kernel", 20),
        ("kernel", 21.0),
        ("alpha", 0.0),
        ("alpha", 1.1),
        ("alpha", float("nan")),
        ("scale", 0.5),
        ("scale", float("inf")),
        ("tau", 0.0),
        ("tau", "1"),
        ("seed", -2),
        ("seed", 2**32),
        ("n_predict", -2),
        ("temp", -0.1),
        ("top_k", -1),
        ("top_k", 2**32 + 1),
        ("top_p", 0.0),
        ("min_p", 1.5),
        ("repeat_penalty", 0.0),
        ("n_threads", -1),
        ("n_threads", 10**11),
        ("n_gpu_layers", 2**31),
        ("n_ubatch", 2**31),
        ("n_gpu_layers", -2),
        ("prefill", "chunked"),
        ("positions", "dense"),
        ("scoring", "torch"),
        ("order", "before"),
        ("type_k", "q5_0"),
        ("type_v", "f32"),
        ("guide", " "),
        ("policy", ""),
        ("use_wo", 1),
        ("n_obs", True),
        ("budget", True),
        ("budget", 2048.0),
        ("budget", None),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name_and_value(name, value):
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_sink", 0), ("alpha", 1), ("temp", 0), ("seed", -1), ("n_predict", -1), ("kernel", 1)],
)
def test_the_bounds_themselves_are_allowed(name, value):
    assert getattr(Config(**{name: value}), name) == value


def test_a_config_error_is_a_value_error_and_ours():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, RestKVError)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        (2048, BudgetSpec("rows", 2048)),
        ("2048", BudgetSpec("rows", 2048)),
        (" 512MiB ", BudgetSpec("bytes", GIB // 2)),
        ("1.5 gib", BudgetSpec("bytes", 3 * GIB // 2)),
        ("64KiB", BudgetSpec("bytes", 65536)),
        ("25%", BudgetSpec("percent", 25)),
        ("12.5 %", BudgetSpec("percent", 12.5)),
        ("100%", BudgetSpec("percent", 100)),
    ],
)
def test_budgets_are_read(text, spec):
    assert parse_budget(text) == spec


@pytest.mark.parametrize(
    "text", ["", "-1", -1, "2e3", "512MB", "512M", "0%", "101%", "1.5", "many", "٣", "1 2", "nan"]
)
def test_other_budgets_are_refused_by_what_they_said(text):
    with pytest.raises(ConfigError) as caught:
        parse_budget(text)
    assert repr(text) in str(caught.value)


def test_rows_and_percent_resolve():
    assert resolve_budget(BudgetSpec("rows", 300), 100, 576, 10) == 300
    assert resolve_budget(BudgetSpec("percent", 25), 100, 576, 4001) == 1000
    assert resolve_budget(BudgetSpec("percent", 29), 100, 576, 100) == 29
    assert resolve_budget(BudgetSpec("percent", 1), 100, 576, 10) == 1
    assert resolve_budget(BudgetSpec("percent", 25), 100, 576, 100, n_least=37) == 37
    assert resolve_budget(BudgetSpec("rows", 30), 100, 576, 100, n_least=37) == 30


@pytest.mark.parametrize("n_pad", [1, 256])
@pytest.mark.parametrize("mib", [10, 11, 512])
def test_bytes_hold_the_whole_capacity(mib, n_pad):
    per_row, n_reserve = 11520, 576
    rows = resolve_budget(parse_budget(f"{mib}MiB"), per_row, n_reserve, 0, n_pad)
    capacity = -(-(rows + n_reserve) // n_pad) * n_pad
    assert capacity * per_row <= mib * 2**20 < (capacity + n_pad) * per_row


@pytest.mark.parametrize("n_pad", [1, 256])
def test_bytes_below_the_reserve_name_what_would_do(n_pad):
    with pytest.raises(ConfigError, match=r"give at least (\d+)MiB") as caught:
        resolve_budget(parse_budget("1MiB"), 11520, 576, 0, n_pad)
    least = str(caught.value).split("at least ")[1].split(" ")[0]
    assert resolve_budget(parse_budget(least), 11520, 576, 0, n_pad) >= 1


def test_the_least_budget_is_said_with_all_numbers():
    Config(budget=37)
    with pytest.raises(ConfigError) as caught:
        Config(budget="36")
    message = str(caught.value)
    for part in ("= 37", "budget=36", "n_sink=4", "n_pinned=0", "n_recent=32"):
        assert part in message
    with pytest.raises(ConfigError, match="= 47"):
        check_budget(46, Config(n_sink=4, n_recent=32), n_pinned=14)


def test_defaults_can_be_read_without_numpy():
    code = "import sys, restkv_local.config; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
