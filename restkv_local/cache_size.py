"""How many rows a cache has, and whether the machine holds them."""

from __future__ import annotations

from restkv_local.config import Config, check_budget, least_budget, parse_budget, resolve_budget
from restkv_local.errors import ConfigError
from restkv_local.free_memory import free_memory
from restkv_local.model.model_file import (
    ROW_PAD,
    ModelShape,
    kv_bytes_per_token,
    pad_rows,
    scoring_bytes,
    swa_cache_bytes,
)

# A segment may grow to this many times the average at the others' expense.
_GROWTH = 4

_CELL_BYTES = 52  # what llama.cpp notes of a slot
_TABLE_BYTES = 8  # true position and rotation of a slot, for each layer and KV head

# What an eviction takes for a moment: attention, its metric and what is ranked, of each query head and row; a row's key
# and the shares of so many queries, of each thread.
_N_SCORES = 3
_N_SHARES = 56


def size_cache(
    config: Config,
    shape: ModelShape,
    n_prompt: int,
    n_answer: int,
    n_pinned: int,
    *,
    evicts: bool,
    n_probe: int,
    n_repeat: int,
) -> tuple[int, int]:
    """Return the rows that evictions leave and those of the cache, both per layer and KV head.

    Parameters
    ----------
    config : Config
        Budget, prefill, chunk, and what no eviction may touch.
    n_prompt, n_answer : int
        Tokens to read and to generate.
    n_pinned : int
        First tokens that no eviction may touch.
    evicts : bool
        Whether the policy ever does.
    n_probe, n_repeat : int
        Rows that any probe takes, and a repetition of text.

    Raises
    ------
    ConfigError
        If the budget does not hold what must stay; a percentage is raised to that.
    """
    n_reserve = config.n_ubatch + n_probe
    row_bytes = kv_bytes_per_token(shape, config.type_k, config.type_v)
    spec = parse_budget(config.budget)
    n_least = least_budget(config, n_pinned) if evicts else 1
    budget = resolve_budget(spec, row_bytes, n_reserve, n_prompt, ROW_PAD, n_least)
    if evicts:
        check_budget(budget, config, n_pinned)
    n_rows = budget + n_reserve
    if _reads_whole(config, evicts=evicts):
        n_rows = max(n_prompt + n_answer + 1 + n_repeat, n_rows)
    return budget, pad_rows(n_rows)


def size_segments(config: Config, n_rows: int, *, equal: bool) -> int:
    """Return the slots of a segment: as many as rows where all stay equal, else room to grow."""
    if equal:
        return n_rows
    # What is read whole evicts from equal segments: none can outgrow the prompt.
    return n_rows + ROW_PAD if config.prefill == "full" else _GROWTH * n_rows


def check_memory(
    config: Config,
    shape: ModelShape,
    n_rows: int,
    *,
    n_slots: int,
    n_ring: int,
    n_threads: int,
    n_freed: int,
    evicts: bool,
    offloads: bool,
) -> None:
    """Refuse a cache that would take more than the machine has left.

    Parameters
    ----------
    n_slots : int
        Rows that a segment may grow to: cells and the table of rows have a place for each.
    n_ring : int
        Newest queries that are kept for scoring.
    n_threads : int
        How many score.
    n_freed : int
        Bytes that the cache gives back which this one replaces.
    offloads : bool
        Whether K, V and scoring may lie on another device, whose backend refuses by itself.

    Raises
    ------
    ConfigError
        If the system would kill the process.
    """
    n_segments = shape.n_layer * shape.n_head_kv
    need = n_slots * (_CELL_BYTES + n_segments * _TABLE_BYTES)
    if evicts:
        need += len(shape.full_layers) * shape.n_head * n_rows * _N_SCORES * 4
    if config.n_gpu_layers == 0 or not offloads:
        if evicts:
            need += n_threads * n_rows * (shape.head_dim_k + _N_SHARES) * 4
        need += (
            n_rows * kv_bytes_per_token(shape, config.type_k, config.type_v)
            + scoring_bytes(shape, n_ring, n_rows)
            + swa_cache_bytes(shape, config.n_ubatch, config.type_k, config.type_v)
        )
    free = free_memory() + n_freed
    if need > free:
        # What is read whole takes its rows however low the budget is.
        whole = _reads_whole(config, evicts=evicts)
        lower = "read it with prefill='bounded'" if whole else f"lower budget={config.budget}"
        raise ConfigError(
            f"{n_rows} rows need {need / 2**30:.1f} GiB for K, V and scoring but {free / 2**30:.1f} GiB are free; "
            f"{lower} or quantise the cache (type_k, type_v = q8_0)"
        )


def _reads_whole(config: Config, *, evicts: bool) -> bool:
    """Whether a prompt is in the cache as a whole at some moment."""
    return config.prefill == "full" or not evicts
