"""What is compared with what."""

import pytest

from restkv_local.bench.caches import choose_caches
from restkv_local.config import Config
from restkv_local.errors import ConfigError


def names(**choice):
    return [cache.name for cache in choose_caches(**choice)]


def test_by_default_the_three_references_stand_before_restkv():
    assert names() == ["full", "full q8_0", "shift 2048", "restkv 2048"]


def test_every_policy_meets_every_allocation_and_budget():
    found = names(
        references=["none"],
        policies=["restkv", "snapkv"],
        allocations=["uniform", "global"],
        budgets=[256, "25%"],
    )
    assert found == [
        "restkv 256", "restkv 25%", "restkv global 256", "restkv global 25%",
        "snapkv 256", "snapkv 25%", "snapkv global 256", "snapkv global 25%",
    ]  # fmt: skip


def test_context_shift_has_a_column_for_each_budget():
    shifts = [cache for cache in choose_caches(budgets=[256, 512]) if cache.shifts]
    assert [cache.name for cache in shifts] == ["shift 256", "shift 512"]
    assert {cache.options["policy"] for cache in shifts} == {"streamingllm"}


def test_references_attend_as_llama_cpp_does_but_for_the_one_that_asks_otherwise():
    caches = choose_caches(references=["full", "q8_0", "shift", "tiles"], budgets=[256])
    assert [(cache.name, cache.upstream) for cache in caches] == [
        ("full", True), ("full q8_0", True), ("full tiles", False), ("shift 256", True),
        ("restkv 256", False),
    ]  # fmt: skip


def test_a_name_asked_for_twice_is_one_column():
    assert names(references=["full", "full"], budgets=[256, 256]) == ["full", "restkv 256"]


def test_quantised_rows_are_for_the_bounded_columns_and_say_so():
    caches = choose_caches(type_k="q8_0", type_v="q4_0", n_threads=1)
    assert [cache.name for cache in caches] == [
        "full", "full q8_0", "shift 2048 q8_0/q4_0", "restkv 2048 q8_0/q4_0",
    ]  # fmt: skip
    kinds = [(Config(**cache.options).type_k, Config(**cache.options).type_v) for cache in caches]
    assert kinds == [("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q8_0", "q4_0")]
    assert all(cache.options["n_threads"] == 1 for cache in caches)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (
            {"references": ["half"]},
            "reference must be one of full, q8_0, shift, tiles, none; got 'half'",
        ),
        ({"policies": ["nonsense"]}, "policy must be one of restkv, "),
        ({"policies": ["full"]}, "policy='full' evicts nothing"),
        ({"allocations": ["nonsense"]}, "allocation must be one of uniform, "),
        ({"policies": ["h2o"], "allocations": ["cake"]}, "that policy='h2o' does not observe"),
        ({"budgets": ["many"]}, "budget='many'"),
        ({"budgets": [3]}, "budget must be at least"),
        ({"n_ubatch": 0}, "n_ubatch must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(choice, text):
    with pytest.raises(ConfigError) as error:
        choose_caches(**choice)
    assert text in str(error.value)
    assert "\n" not in str(error.value)
