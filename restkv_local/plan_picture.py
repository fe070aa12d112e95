"""Pictures of plans. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from restkv_local.pictures import open_figure, save_figure
from restkv_local.plan_report import PlanReport, map_plan
from restkv_local.policies.registry import POLICIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches: a panel, and what stands around all of them.
_PANEL: Final = (5.6, 1.5)
_AROUND: Final = (1.2, 1.2)


def draw_plans(report: PlanReport, path: Path) -> None:
    """Draw layer by position for each plan, all on one colour scale, and write a PNG.

    Parameters
    ----------
    report : PlanReport
        At least one plan.
    path : Path
        The file; one that exists is replaced.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    n_across = min(len(report.plans), 2)
    n_down = -(-len(report.plans) // n_across)
    figure = open_figure(_AROUND[0] + n_across * _PANEL[0], _AROUND[1] + n_down * _PANEL[1])
    grid = figure.subplots(n_down, n_across, sharex=True, sharey=True, squeeze=False)
    n_layer = len(report.layers)
    for axes, (name, figures) in zip(grid.flat, report.figures().items(), strict=False):
        shares, width = map_plan(report.plans[name].keep)
        extent = (0, shares.shape[1] * width, n_layer - 0.5, -0.5)
        image = axes.imshow(shares, cmap="BuPu", vmin=0, vmax=1, aspect="auto", extent=extent)
        axes.set_title(f"{name}, {figures.kept:.1%} kept", loc="left")
        n_sink = report.n_sink if POLICIES[name].keeps_sinks else 0
        _mark(axes, 0, max(n_sink, report.n_pinned))
        _mark(axes, report.n_tokens - report.n_recent, report.n_tokens)
    for axes in grid.flat[len(report.plans) :]:
        axes.set_visible(False)
    for axes in grid.flat[len(report.plans) - n_across : len(report.plans)]:
        axes.tick_params(labelbottom=True)  # the lowest of its column
    grid[0, 0].set_xlim(0, report.n_tokens)
    step = -(-n_layer // 6)
    grid[0, 0].set_yticks(range(0, n_layer, step), [str(il) for il in report.layers[::step]])
    figure.suptitle(
        f"{report.model}: {report.n_tokens:,} tokens, budget {report.budget:,} rows, "
        f"allocation {report.allocation}",
        parse_math=False,  # a file may call its model $anything$
    )
    figure.supylabel("layer")
    figure.supxlabel(
        f"position in the text, tokens ({width} a column); orange: kept whatever the score"
    )
    bar = figure.colorbar(image, ax=grid, shrink=min(1.0, 3 / n_down), pad=0.01)
    bar.set_label("share of KV heads that keep the token")
    save_figure(figure, path)


def _mark(axes: Axes, first: int, end: int) -> None:
    """Draw a bar above the tokens ``[first, end)``."""
    axes.plot(
        (first, end),
        (1.03, 1.03),
        transform=axes.get_xaxis_transform(),
        color="tab:orange",
        linewidth=3,
        solid_capstyle="butt",
        clip_on=False,
    )
