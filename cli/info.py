"""Say what a model needs and what a budget saves, from the file's header alone."""

from __future__ import annotations

from typing import Any

from restkv_local.cli import _options as opt
from restkv_local.cli._console import format_bytes, print_json, stdout_console

from restkv_local.config import DEFAULTS, Config, parse_budget, resolve_budget
from restkv_local.errors import UnsupportedModelError
from restkv_local.model.model_file import (
    ROW_PAD,
    ModelShape,
    check_supported,
    kv_bytes_per_token,
    pad_rows,
    read_model,
    supported_positions,
    swa_cache_bytes,
)

# Text lengths people ask about; the model's trained length joins them.
N_CTX_SHOWN = (4096, 16384, 65536)


def info(
    model: opt.Model,
    budget: opt.Budget = opt.DEFAULT_BUDGET,
    positions: opt.Positions = DEFAULTS.positions,
    n_guide: opt.NGuide = DEFAULTS.n_guide,
    n_ubatch: opt.NUbatch = DEFAULTS.n_ubatch,
    type_k: opt.TypeK = DEFAULTS.type_k,
    type_v: opt.TypeV = DEFAULTS.type_v,
    as_json: opt.Json = False,
) -> None:
    """Show a model's shape and its KV memory with and without a budget, without loading it."""
    from restkv_local.model.demo import resolve_model

    config = Config(
        budget=budget,
        positions=positions,
        n_guide=n_guide,
        n_ubatch=n_ubatch,
        type_k=type_k,
        type_v=type_v,
    )
    facts = collect_facts(read_model(resolve_model(model)), config)
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


def collect_facts(shape: ModelShape, config: Config) -> dict[str, Any]:
    """Gather what ``info`` tells about a model.

    Parameters
    ----------
    shape : ModelShape
        From the file's header.
    config : Config
        Budget, chunk, guide and KV types.

    Returns
    -------
    dict
        The object of ``--json``. ``memory`` has one entry per text length: budget and capacity in
        rows, K and V in bytes with (``bytes``) and without (``bytes_full``) the budget, the
        sliding-window layers' own cache counted in both.
    """
    reason = None
    try:
        check_supported(
            shape, type_k=config.type_k, type_v=config.type_v, positions=config.positions
        )
    except UnsupportedModelError as error:
        reason = str(error)
    per_token = kv_bytes_per_token(shape, config.type_k, config.type_v)
    swa_bytes = swa_cache_bytes(shape, config.n_ubatch, config.type_k, config.type_v)
    n_reserve = config.n_ubatch + config.n_guide
    spec = parse_budget(config.budget)
    memory = []
    # A model of sliding-window layers only has nothing that a budget could bound.
    for n_ctx in sorted({*N_CTX_SHOWN, shape.n_ctx_train}) if per_token else ():
        budget = resolve_budget(spec, per_token, n_reserve, n_ctx, ROW_PAD)
        capacity = pad_rows(budget + n_reserve)
        memory.append(
            {
                "n_ctx": n_ctx,
                "budget": budget,
                "capacity": capacity,
                "bytes": capacity * per_token + swa_bytes,
                "bytes_full": n_ctx * per_token + swa_bytes,
            }
        )
    return {
        "model": shape.name,
        "path": str(shape.path),
        "arch": shape.arch,
        "quantisation": shape.quantisation,
        "file_bytes": shape.file_bytes,
        "n_layer": shape.n_layer,
        "n_layer_full": len(shape.full_layers),
        "n_head": shape.n_head,
        "n_head_kv": shape.n_head_kv,
        "head_dim_k": shape.head_dim_k,
        "head_dim_v": shape.head_dim_v,
        "n_embd": shape.n_embd,
        "n_vocab": shape.n_vocab,
        "n_ctx_train": shape.n_ctx_train,
        "n_swa": shape.n_swa,
        "rope_type": shape.rope_type,
        "type_k": config.type_k,
        "type_v": config.type_v,
        "positions": list(supported_positions(shape, type_k=config.type_k)),
        "kv_bytes_per_token": per_token,
        "kv_bytes_swa": swa_bytes,
        "memory": memory,
        "supported": reason is None,
        "reason": reason,
    }


def print_facts(facts: dict[str, Any]) -> None:
    """Print the facts as tables on stdout."""
    from rich import box
    from rich.table import Table

    console = stdout_console()
    rows = {
        "model": f"{facts['model']} ({facts['arch']}, {facts['quantisation']}, "
        f"{format_bytes(facts['file_bytes'])})",
        "layers": f"{facts['n_layer']}",
        "heads": f"{facts['n_head']} query, {facts['n_head_kv']} KV, of {facts['head_dim_k']}",
        "trained on": f"{facts['n_ctx_train']:,} tokens, RoPE {facts['rope_type']}",
        "KV per token": f"{facts['kv_bytes_per_token'] / 1024:,.1f} KiB "
        f"(K {facts['type_k']}, V {facts['type_v']})",
    }
    if facts["n_swa"]:
        rows["layers"] += (
            f", {facts['n_layer_full']} with full attention: the budget is theirs; "
            f"the others see {facts['n_swa']:,} tokens"
        )
    if facts["supported"]:
        rows["eviction"] = f"supported, positions {' or '.join(facts['positions'])}"
    else:
        rows["eviction"] = f"not supported: {facts['reason']}"
    for name, value in rows.items():
        console.print(f"{name:<13} {value}", soft_wrap=True)
    if not facts["memory"]:
        return
    table = Table(box=box.SIMPLE, title="KV memory", title_justify="left")
    for heading in ("text", "without a budget", "budget", "capacity", "with it", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in facts["memory"]:
        trained = " (trained)" if row["n_ctx"] == facts["n_ctx_train"] else ""
        saved = 1 - row["bytes"] / row["bytes_full"]
        table.add_row(
            f"{row['n_ctx']:,}{trained}",
            format_bytes(row["bytes_full"]),
            f"{row['budget']:,}",
            f"{row['capacity']:,}",
            format_bytes(row["bytes"]),
            f"{saved:.0%}" if saved > 0 else "-",
        )
    console.print(table)
