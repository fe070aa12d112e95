"""Show what policies would keep of a text: figures on stdout, a map as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from restkv_local.cli import _options as opt
from restkv_local.cli._console import (
    PrefillBar,
    fail_usage,
    print_json,
    print_note,
    show_status,
    stdout_console,
)
from restkv_local.cli._input import read_documents
from restkv_local.cli._turn import open_model

from restkv_local.config import DEFAULT_SHARE, DEFAULTS
from restkv_local.errors import ConfigError

if TYPE_CHECKING:
    from restkv_local.plan_report import PlanReport


def plan(
    ctx: typer.Context,
    model: opt.Model,
    file: Annotated[
        list[str],
        typer.Option(
            "-f",
            "--file",
            metavar="FILE",
            help="Read this: text, HTML, PDF, DOCX, EPUB; repeatable; '-' is stdin.",
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", metavar="TEXT", help="A question that follows the text."),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png", metavar="FILE", help="Draw what stays, layer by position, as a PNG file."
        ),
    ] = None,
    as_json: opt.Json = False,
    budget: opt.Budget = DEFAULT_SHARE,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="A policy to show; repeatable. Without it, every one that evicts.",
            rich_help_panel=opt.CACHE,
        ),
    ] = None,
    allocation: opt.Allocation = DEFAULTS.allocation,
    n_sink: opt.NSink = DEFAULTS.n_sink,
    n_recent: opt.NRecent = DEFAULTS.n_recent,
    n_obs: opt.NObs = DEFAULTS.n_obs,
    n_ubatch: opt.NUbatch = DEFAULTS.n_ubatch,
    type_k: opt.TypeK = DEFAULTS.type_k,
    type_v: opt.TypeV = DEFAULTS.type_v,
    kernel: opt.Kernel = DEFAULTS.kernel,
    alpha: opt.Alpha = DEFAULTS.alpha,
    scale: opt.Scale = DEFAULTS.scale,
    tau: opt.Tau = DEFAULTS.tau,
    scoring: opt.Scoring = DEFAULTS.scoring,
    seed: opt.Seed = DEFAULTS.seed,
    n_threads: opt.NThreads = DEFAULTS.n_threads,
    n_gpu_layers: opt.NGpuLayers = DEFAULTS.n_gpu_layers,
    verbose: opt.Verbose = False,
) -> None:
    """Show which rows each policy would keep of a text; nothing is evicted or generated.

    The prompt is that of `restkv-chat -f FILE -p TEXT --prefill full`. It is read once and whole,
    so memory has to hold all of it; then each policy plans the one eviction that would follow.
    Policies that follow all queries (`restkv policies`) make reading slower.

    The window that scores the rows is the newest --n-obs queries, as in the papers: the end of the
    prompt, which with -p is the question and what the chat template puts after it. They count as
    running text, not as a guide: bounded prefill, which reads the question as a guide before each
    eviction, may choose otherwise.
    """
    settings = opt.read_settings(ctx)
    if prompt is not None and not prompt.strip():
        fail_usage("the prompt is empty; give -p a question, or leave -p out")
    names = choose_policies(policies, allocation)
    settings.update(policy=names[0], prefill="full")

    # Imported here: `--help` must not wait for NumPy.
    from restkv_local.catalogue import tracked_by
    from restkv_local.model.demo import resolve_model
    from restkv_local.pictures import check_picture
    from restkv_local.plan_picture import draw_plans
    from restkv_local.plan_report import plan_policies, read_whole

    if png is not None:
        check_picture(png)
    documents = read_documents(file)
    path = resolve_model(model)
    try:
        with open_model(path, settings, verbose=verbose, also_track=tracked_by(names)) as llama:
            n_trained = llama.shape.n_ctx_train
            with PrefillBar() as bar:
                read_whole(llama, prompt or "", documents=documents, on_progress=bar.update)
            with show_status("planning") as say:
                report = plan_policies(llama, names, on_policy=lambda name: say(f"planning {name}"))
    except KeyboardInterrupt:
        print_note("cancelled, nothing was planned")
        raise typer.Exit(130) from None
    if report.n_tokens > n_trained:
        print_note(
            f"note: {report.n_tokens:,} tokens are more than the {n_trained:,} that the model was"
            " trained on; what is read whole keeps its positions, so its attention means little"
        )
    if report.n_tokens <= report.budget:
        print_note(f"note: a budget of {report.budget:,} rows holds the whole text")
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if png is not None:
        draw_plans(report, png)
        print_note(f"wrote {png}", style="dim")


def choose_policies(names: Sequence[str] | None, allocation: str) -> list[str]:
    """Return the policies to show, each once: those named, or all that the allocation serves.

    Raises
    ------
    ConfigError
        A name is unknown, a policy evicts nothing, or the allocation cannot split its rows.
    """
    from restkv_local.allocators.registry import check_pair, make_allocator
    from restkv_local.catalogue import list_servable
    from restkv_local.policies.registry import make_policy

    allocator = make_allocator(allocation)
    if not names:
        served, refused = list_servable(allocation)
        if refused:
            print_note(
                f"note: allocation={allocation!r} splits by attention that {', '.join(refused)} do not"
                " observe; these are left out"
            )
        return served
    for name in names:
        policy = make_policy(name)
        if not policy.evicts:
            raise ConfigError(f"policy={name!r} keeps every row: nothing to plan; leave it out")
        check_pair(allocator, policy)
    return list(dict.fromkeys(names))


def print_report(report: PlanReport) -> None:
    """Print the plans as a table on stdout."""
    from rich import box
    from rich.table import Table

    console = stdout_console()
    console.print(
        f"{report.n_tokens:,} tokens, budget {report.budget:,} rows, "
        f"allocation {report.allocation}, window {report.n_obs:,} queries",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE)
    table.add_column("policy", no_wrap=True)
    for heading in ("kept", "rows", "overlap", "depth", "last 10%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in report.figures().items():
        low, high = figures.rows_min, figures.rows_max
        table.add_row(
            name,
            f"{figures.kept:.1%}",
            f"{low:,}" if low == high else f"{low:,}..{high:,}",
            f"{figures.overlap:.1%}",
            f"{figures.depth:.1%}",
            f"{figures.newest:.1%}",
        )
    console.print(table)
    meanings = {
        "overlap": f"rows of {next(iter(report.plans))} that stay too, mean over layers and heads",
        "depth": "mean place of the rows that stay; 0% is the beginning of the text",
        "last 10%": "rows from the last tenth of the text, of those that stay",
    }
    for heading, meaning in meanings.items():
        console.print(f"{heading:<10}{meaning}", style="dim", soft_wrap=True)
