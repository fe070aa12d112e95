"""Pictures of an evaluation: needles by depth and length, scores against rows kept, errors by layer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from restkv_local.errors import InputError
from restkv_local.evaluation import likelihood, reconstruction
from restkv_local.evaluation.grid import Cell
from restkv_local.evaluation.log import Record
from restkv_local.evaluation.report import mean_by_layer
from restkv_local.evaluation.summary import (
    Section,
    family_mean,
    kept_share,
    main_metrics,
    split_sections,
)
from restkv_local.pictures import check_matplotlib, open_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL: Final = (5.0, 3.6)  # inches
_MOST_ACROSS: Final = 3


def check_folder(folder: Path) -> None:
    """Refuse early what would fail after hours of measuring; a folder that is not there is made.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    InputError
        If the folder cannot be made.
    """
    check_matplotlib()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: {error.strerror or error}; name a folder for the pictures"
        ) from None


def draw_records(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw everything that the records show, and write PNG files.

    Parameters
    ----------
    records : sequence of Record
        Of one model under one set of conditions.
    folder : Path
        Where they go; files of the same names are replaced.

    Returns
    -------
    list of Path
        The files: ``scores.png``, ``TASK-depths.png``, ``ppl.png``, ``reconstruction.png``, those there is
        something for.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    written = []
    for name, figure in _draw_all(records):
        path = folder / f"{name}.png"
        save_figure(figure, path)
        written.append(path)
    return written


def _draw_all(records: Sequence[Record]) -> Iterator[tuple[str, Figure]]:
    sections = split_sections(records)
    texts = (likelihood.NAME, reconstruction.NAME)
    if asked := [section for section in sections if section.family not in texts]:
        yield (
            "scores",
            _draw_against_rows(asked, lambda found: family_mean(found).mean.value, "score, %", 103),
        )
    by_task: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if "depth" in record.extra and record.item.length is not None:
            by_task.setdefault((record.item.task, record.item.question), []).append(record)
    for (task, question), found in by_task.items():
        yield f"{task}-{question}-depths", _draw_depths(task, question, found)
    predicted = [section for section in sections if section.family == likelihood.NAME]
    compared = [s for s in predicted if any("kl" in record.scores for record in s.records)]
    if compared:
        yield "ppl", _draw_against_rows(compared, _mean_kl, "KL to the full cache, nats")
    if rebuilt := [section for section in sections if section.family == reconstruction.NAME]:
        yield "reconstruction", _draw_layers(rebuilt)


def _mean_kl(records: Sequence[Record]) -> float:
    found = [record.scores["kl"] for record in records if "kl" in record.scores]
    return statistics.fmean(found) if found else float("nan")


def _draw_against_rows(
    sections: Sequence[Section],
    value: Callable[[Sequence[Record]], float],
    label: str,
    highest: float | None = None,
) -> Figure:
    """Draw a panel for each table: share of the rows kept on x, a line for each rule."""
    figure, panels = _make_figure(len(sections))
    rules = list(dict.fromkeys(c.rule for section in sections for c in section.cells if c.evicts))
    for axes, section in zip(panels, sections, strict=True):
        for i, rule in enumerate(rules):
            cells = [cell for cell in section.cells if cell.rule == rule]
            points = sorted((kept_share(section.of(c)), value(section.of(c))) for c in cells)
            axes.plot(
                [100 * share for share, _ in points],
                [height for _, height in points],
                marker="o",
                markersize=4,
                color=f"C{i % 10}",
                linestyle=_style(i),
                label=rule,
            )
        for cell in section.cells:
            if not cell.evicts:
                axes.axhline(value(section.of(cell)), color="0.4", linestyle=":", label="full")
        axes.set_title(section.title, loc="left", fontsize="medium")
        axes.set_xlabel("rows in the cache at the end, % of the text")
        axes.set_ylabel(label)
        axes.set_ylim(0, highest)
        axes.grid(alpha=0.3)
    _add_legend(figure)
    return figure


def _draw_depths(task: str, question: str, records: Sequence[Record]) -> Figure:
    """Draw a panel for each cell of the grid: length on x, depth on y, the mean score as colour."""
    cells = list(dict.fromkeys(record.cell for record in records))
    lengths = sorted({record.item.length or 0 for record in records})
    depths = sorted({record.extra["depth"] for record in records})
    metric = main_metrics(records)[task]
    figure, panels = _make_figure(len(cells))
    for axes, cell in zip(panels, cells, strict=True):
        image = axes.imshow(
            _mean_grid([r for r in records if r.cell == cell], metric, lengths, depths),
            cmap="RdYlBu",
            vmin=0,
            vmax=1,
            aspect="auto",
        )
        axes.set_title(str(cell), loc="left", fontsize="medium")
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.set_xlabel("tokens")
        axes.set_ylabel("depth, %")
    n_down = -(-len(cells) // _MOST_ACROSS)
    bar = figure.colorbar(image, ax=panels, shrink=1 / n_down, pad=0.01)
    bar.set_label(metric)
    figure.suptitle(f"{task}, question {question}")
    return figure


def _mean_grid(
    records: Sequence[Record], metric: str, lengths: Sequence[int], depths: Sequence[float]
) -> list[list[float]]:
    """Return the mean score by depth and length, NaN where nothing was measured."""
    places: dict[tuple[float, int | None], list[float]] = {}
    for record in records:
        place = record.extra["depth"], record.item.length
        places.setdefault(place, []).append(record.scores[metric])
    return [
        [statistics.fmean(places.get((depth, length), [float("nan")])) for length in lengths]
        for depth in depths
    ]


def _draw_layers(sections: Sequence[Section]) -> Figure:
    """Draw a panel for each length and budget: layer on x, error on y, a line for each rule."""
    by_panel: dict[str, list[tuple[Cell, list[Record]]]] = {}
    for section in sections:
        for cell in section.cells:
            title = f"{section.title}, budget {cell.budget}"
            by_panel.setdefault(title, []).append((cell, section.of(cell)))
    rules = list(dict.fromkeys(cell.rule for lines in by_panel.values() for cell, _ in lines))
    figure, panels = _make_figure(len(by_panel))
    for axes, (title, lines) in zip(panels, by_panel.items(), strict=True):
        for cell, records in lines:
            i = rules.index(cell.rule)
            axes.plot(
                records[0].extra["layers"],
                mean_by_layer(records),
                marker=".",
                color=f"C{i % 10}",
                linestyle=_style(i),
                label=cell.rule,
            )
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("relative error of the attention output")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    _add_legend(figure)
    return figure


def _make_figure(n_panels: int) -> tuple[Figure, list[Any]]:
    n_across = min(n_panels, _MOST_ACROSS)
    n_down = -(-n_panels // n_across)
    figure = open_figure(n_across * _PANEL[0], n_down * _PANEL[1] + 0.8)
    panels = list(figure.subplots(n_down, n_across, squeeze=False).flat)
    for axes in panels[n_panels:]:
        axes.set_visible(False)
    return figure, panels[:n_panels]


def _add_legend(figure: Figure) -> None:
    """Name every line once, below all panels."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        n_across = min(len(figure.axes), _MOST_ACROSS)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=n_across)


def _style(i: int) -> str:
    """Twenty lines before two look alike."""
    return "-" if i < 10 else "--"
