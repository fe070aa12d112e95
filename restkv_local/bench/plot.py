"""The run as a picture: speed and memory against depth. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from restkv_local.bench.figures import Figure
from restkv_local.bench.report import BenchReport
from restkv_local.pictures import open_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE: Final = (11.0, 8.0)  # inches


def draw_bench(report: BenchReport, path: Path) -> None:
    """Draw pp, tg, TTFT and memory against depth, a line for each column, and write a PNG.

    Parameters
    ----------
    report : BenchReport
        With at least one measured cell.
    path : Path
        The file; one that exists is replaced.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    metadata = report.metadata
    canvas = open_figure(*_SIZE)
    tests = (f"pp{metadata['n_prompt']}", f"tg{metadata['n_gen']}", "ttft", "peak memory")
    figures = report.figures()
    for axes, test in zip(canvas.subplots(2, 2).flat, tests, strict=True):
        _draw_test(axes, test, [figure for figure in figures if figure.test == test], report.names)
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=4)
    title = (
        f"{metadata['model']}, {metadata['quantisation']}, -t {metadata['n_threads']},"
        f" {', '.join(metadata['devices'])}"
    )
    # A file may call its model $anything$, and wrapping does not ask for parse_math.
    canvas.suptitle(title.replace("$", r"\$"), wrap=True)
    save_figure(canvas, path)


def _draw_test(axes: Axes, test: str, figures: list[Figure], caches: list[str]) -> None:
    for i, cache in enumerate(caches):
        line = [figure for figure in figures if figure.cache == cache]
        axes.errorbar(
            [figure.depth for figure in line],
            [figure.median for figure in line],
            [figure.mad for figure in line],
            # Twenty columns before two look alike.
            color=f"C{i % 10}",
            linestyle="-" if i < 10 else "--",
            marker="o",
            markersize=4,
            capsize=2,
            label=cache,
        )
    unit = figures[0].unit if figures else ""
    axes.set_title(f"{test}, {unit}", loc="left")
    axes.set_xlabel("tokens read before" if test != "ttft" else "tokens of the prompt")
    if any(figure.depth > 0 for figure in figures):
        axes.set_xscale("log", base=2)
        depths = sorted({figure.depth for figure in figures if figure.depth > 0})
        axes.set_xticks(depths, [f"{depth:,}" for depth in depths])
        axes.minorticks_off()
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
