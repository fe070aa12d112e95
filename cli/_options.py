"""The options that commands share; their defaults and bounds live in Config, not here."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from restkv_local.config import (
    DEFAULTS,
    PENALISED,
    Config,
    KVType,
    PositionKind,
    PrefillKind,
    ScoringKind,
    parse_budget,
)
from restkv_local.errors import ConfigError

HELP_NAMES = {"help_option_names": ["-h", "--help"]}

DEFAULT_BUDGET = str(DEFAULTS.budget)

# Of a measurement: more would be made up in memory before anything could say that it is too much.
MOST_TOKENS = 10_000_000

CACHE = "Cache"
POLICY = "ReST-KV"
SAMPLING = "Answer"
RUNTIME = "Runtime"


def read_settings(ctx: typer.Context) -> dict[str, Any]:
    """Return the options that are fields of Config, by their names there: nothing is listed a second time.

    Raises
    ------
    ConfigError
        If a value is out of bounds: before anything is read or loaded.
    """
    names = [field.name for field in dataclasses.fields(Config)]
    settings = {name: ctx.params[name] for name in names if name in ctx.params}
    Config(**settings)
    return settings


def is_given(ctx: typer.Context, name: str) -> bool:
    """Tell whether an option was written, rather than left at its default."""
    return getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT"


def _check_budget(text: str) -> str:
    """Refuse a budget that is not a budget at all; whether it fits is the engine's question."""
    try:
        parse_budget(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def _print_version(wanted: bool) -> None:
    if wanted:
        from restkv_local import __version__

        typer.echo(f"restkv-local {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A GGUF file (of a split model: its first part), or 'demo'.",
    ),
]

System = Annotated[
    str | None,
    typer.Option("-sys", "--system", metavar="TEXT", help="System prompt; it is never evicted."),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache", help="Read every text anew, and keep no long one for the next time."
    ),
]

# What the cache keeps.
Budget = Annotated[
    str,
    typer.Option(
        "--budget",
        metavar="N|SIZE|PERCENT",
        callback=_check_budget,
        help="Rows kept per layer and KV head: 2048, 512MiB of KV, or 25% of the prompt.",
        rich_help_panel=CACHE,
    ),
]
Policy = Annotated[
    str,
    typer.Option("--policy", metavar="NAME", help="What scores a row.", rich_help_panel=CACHE),
]
Allocation = Annotated[
    str,
    typer.Option(
        "--allocation",
        metavar="NAME",
        help="How layers and KV heads share the budget.",
        rich_help_panel=CACHE,
    ),
]
Prefill = Annotated[
    PrefillKind,
    typer.Option(
        "--prefill",
        help="Evict while reading (bounded), or once after the whole prompt (full).",
        rich_help_panel=CACHE,
    ),
]
Positions = Annotated[
    PositionKind,
    typer.Option(
        "--positions",
        help="Keep RoPE positions, or renumber the rows that stay (reads past the trained length).",
        rich_help_panel=CACHE,
    ),
]
Guide = Annotated[
    str,
    typer.Option(
        "--guide",
        metavar="auto|off|TEXT",
        help="Text whose queries judge what to keep; auto: your question.",
        rich_help_panel=CACHE,
    ),
]
NSink = Annotated[
    int,
    typer.Option("--n-sink", help="First rows that always stay.", rich_help_panel=CACHE),
]
NRecent = Annotated[
    int,
    typer.Option("--n-recent", help="Newest rows that always stay.", rich_help_panel=CACHE),
]
NObs = Annotated[
    int,
    typer.Option("--n-obs", help="Newest queries that score the rows.", rich_help_panel=CACHE),
]
NGuide = Annotated[
    int,
    typer.Option("--n-guide", help="Longest guide, in tokens.", rich_help_panel=CACHE),
]
NUbatch = Annotated[
    int,
    typer.Option(
        "-ub",
        "--ubatch-size",
        help="Tokens read at a time; the cache holds this many above the budget.",
        rich_help_panel=CACHE,
    ),
]
TypeK = Annotated[
    KVType,
    typer.Option("-ctk", "--cache-type-k", help="How keys are stored.", rich_help_panel=CACHE),
]
TypeV = Annotated[
    KVType,
    typer.Option("-ctv", "--cache-type-v", help="How values are stored.", rich_help_panel=CACHE),
]

# ReST-KV's own knobs.
Kernel = Annotated[
    int,
    typer.Option(
        "--kernel",
        help="Narrowest smoothing window, in rows; only restkv, restkv+, snapkv, caote, criticalkv and"
        " defensivekv take it.",
        rich_help_panel=POLICY,
    ),
]
Alpha = Annotated[
    float,
    typer.Option(
        "--alpha",
        help="Weight of the newest query in the moving average; only restkv takes it.",
        rich_help_panel=POLICY,
    ),
]
Scale = Annotated[
    float,
    typer.Option(
        "--scale",
        help="Drift, in positions, that widens the window by one step; only restkv takes it.",
        rich_help_panel=POLICY,
    ),
]
Tau = Annotated[
    float,
    typer.Option(
        "--tau",
        help="Power of the output change; only restkv takes it.",
        rich_help_panel=POLICY,
    ),
]
Scoring = Annotated[
    ScoringKind,
    typer.Option(
        "--scoring",
        help="Reduce attention on the device, or in NumPy (slow, the reference).",
        rich_help_panel=POLICY,
    ),
]

# llama.cpp's own, spelt as there.
NPredict = Annotated[
    int,
    typer.Option(
        "-n",
        "--n-predict",
        help="Longest answer, in tokens; -1: until the model stops.",
        rich_help_panel=SAMPLING,
    ),
]
Temp = Annotated[
    float,
    typer.Option("--temp", help="Temperature; 0 is greedy.", rich_help_panel=SAMPLING),
]
TopK = Annotated[int, typer.Option("--top-k", help="Top-k; 0 is off.", rich_help_panel=SAMPLING)]
TopP = Annotated[
    float,
    typer.Option("--top-p", help="Top-p; 1 is off.", rich_help_panel=SAMPLING),
]
MinP = Annotated[
    float,
    typer.Option("--min-p", help="Min-p; 0 is off.", rich_help_panel=SAMPLING),
]
RepeatPenalty = Annotated[
    float,
    typer.Option(
        "--repeat-penalty",
        help=f"Divides the logits of an answer's last {PENALISED} tokens; 1 is off.",
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", help="Seed of everything random.", rich_help_panel=SAMPLING),
]
NThreads = Annotated[
    int,
    typer.Option(
        "-t",
        "--threads",
        help="Threads; 0: one per physical core.",
        rich_help_panel=RUNTIME,
    ),
]
NGpuLayers = Annotated[
    int,
    typer.Option("-ngl", "--n-gpu-layers", help="Layers on the GPU.", rich_help_panel=RUNTIME),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", help="Show llama.cpp's own log on stderr.", rich_help_panel=RUNTIME
    ),
]
