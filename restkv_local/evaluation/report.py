"""Writes the records of a log as Markdown tables: a line for each cell of the grid."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from restkv_local.evaluation import likelihood, reconstruction
from restkv_local.evaluation.grid import Cell
from restkv_local.evaluation.log import LogContent, Record
from restkv_local.evaluation.metrics.registry import METRICS
from restkv_local.evaluation.summary import (
    Mean,
    Section,
    bounded_mean,
    family_mean,
    kept_share,
    normal_mean,
    scale_of,
    scores_of,
    split_sections,
)
from restkv_local.markdown import write_table

_RULES: Final = ("policy", "allocation", "budget", "prefill", "positions", "kept", "n")
_N_WORDS: Final = 5  # columns of words; numbers stand to the right


def write_report(logs: Iterable[LogContent]) -> str:
    """Return the tables of logs, those of equal conditions and of the same rules together.

    Returns
    -------
    str
        Markdown: means with 95 % intervals in brackets.
    """
    groups: dict[str, tuple[Mapping[str, Any], dict[object, Record]]] = {}
    for content in logs:
        title = describe_conditions(content.conditions) + _describe_codes(content.codes)
        _, records = groups.setdefault(title, (content.conditions, {}))
        records |= {record.key: record for record in content.records}
    parts = []
    for title, (_, records) in groups.items():
        parts.append(title)
        parts += [_write_section(section) for section in split_sections(records.values())]
    return "\n\n".join(parts)


def describe_conditions(conditions: Mapping[str, Any]) -> str:
    """Say in a heading and a line what was measured under which conditions."""
    named = ("model", "quantisation", "fingerprint", "version", "llama_cpp", "python")
    others = ", ".join(
        f"{key}={value}"
        for key, value in conditions.items()
        if key not in named and value is not None
    )
    return (
        f"## {conditions.get('model')}, {conditions.get('quantisation')}\n\n"
        f"restkv-local {conditions.get('version')}, llama.cpp of {conditions.get('llama_cpp')}, Python"
        f" {conditions.get('python')}, fingerprint {str(conditions.get('fingerprint'))[:16]}; {others}"
    )


def _describe_codes(codes: Mapping[str, Sequence[str]]) -> str:
    """Say which code rules of the user's own are, in short."""
    return "".join(
        f"; {rule} is {' and '.join(code[:8] for code in each)}"
        for rule, each in sorted(codes.items())
    )


def _write_section(section: Section) -> str:
    legend = ""
    if section.family == likelihood.NAME:
        head, lines = _likelihood(section)
    elif section.family == reconstruction.NAME:
        head, lines = _reconstruction(section)
    else:
        head, lines = _answers(section)
        legend = _explain(section)
    rows = [[*_rules(cell, section.of(cell)), *line] for cell, line in lines.items()]
    table = write_table([*_RULES, *head], rows, n_left=_N_WORDS)
    return "\n\n".join(filter(None, (f"### {section.title}", table, legend)))


def _explain(section: Section) -> str:
    """Say what is scored, by the metrics that this version knows."""
    names = dict.fromkeys(metric for _, metric in section.columns)
    known = [METRICS[name] for name in names if name in METRICS]
    return "; ".join(f"{one.name}: {one.summary}, out of {one.scale}" for one in known)


def _answers(section: Section) -> tuple[list[str], dict[Cell, list[str]]]:
    columns = section.columns
    n_metrics = {task: sum(other == task for other, _ in columns) for task, _ in columns}
    # The family's name is in the heading.
    head = [
        task.removeprefix(f"{section.family}-") + (f" {metric}" if n_metrics[task] > 1 else "")
        for task, metric in columns
    ]
    is_family = len(n_metrics) > 1
    has_seeds = len({record.item.seed for record in section.records}) > 1
    head += ["mean", "sd over tasks"] if is_family else []
    head += ["sd over seeds"] if has_seeds else []
    lines = {}
    for cell in section.cells:
        records = section.of(cell)
        line = []
        for task, metric in columns:
            scores = scores_of(records, task, metric)
            most = scale_of(metric)
            line.append(
                _show(bounded_mean(scores, most), 0 if most == 100 else 1) if scores else "-"
            )
        whole = family_mean(records)
        if is_family:
            line += [_show(whole.mean, 1), _show_spread(whole.over_tasks)]
        if has_seeds:
            line.append(_show_spread(whole.over_seeds))
        lines[cell] = line
    return head, lines


def _likelihood(section: Section) -> tuple[list[str], dict[Cell, list[str]]]:
    lines = {}
    for cell in section.cells:
        records = section.of(cell)
        nll = normal_mean(scores_of(records, likelihood.NAME, "nll"))
        perplexity = Mean(_exp(nll.value), _exp(nll.low), _exp(nll.high), nll.n)
        kl = scores_of(records, likelihood.NAME, "kl")
        same_top = scores_of(records, likelihood.NAME, "same_top")
        lines[cell] = [
            _show(perplexity, 2),
            _show(normal_mean(kl), 4) if kl else "-",
            _show(normal_mean([100 * share for share in same_top]), 1) if same_top else "-",
        ]
    return ["perplexity", "KL to full, nats", "same top token, %"], lines


def _reconstruction(section: Section) -> tuple[list[str], dict[Cell, list[str]]]:
    lines = {}
    for cell in section.cells:
        records = section.of(cell)
        error = normal_mean(scores_of(records, reconstruction.NAME, reconstruction.METRIC))
        layers = records[0].extra["layers"]
        by_layer = mean_by_layer(records)
        worst = max(range(len(layers)), key=by_layer.__getitem__)
        lines[cell] = [_show(error, 3), f"{by_layer[worst]:.3f} in {layers[worst]}"]
    return ["error, mean of layers", "worst layer"], lines


def mean_by_layer(records: Sequence[Record]) -> list[float]:
    """Return the mean error of each layer."""
    errors = [record.extra["errors"] for record in records]
    return [statistics.fmean(layer) for layer in zip(*errors, strict=True)]


def _rules(cell: Cell, records: Sequence[Record]) -> list[str]:
    words = [cell.policy, cell.allocation, cell.budget, cell.prefill, cell.positions]
    if not cell.evicts:
        words = [cell.policy, *["-"] * (len(words) - 1)]
    return [*words, f"{kept_share(records):.0%}", f"{len(records)}"]


def _show(mean: Mean, digits: int) -> str:
    text = f"{mean.value:.{digits}f}"
    if not math.isfinite(mean.high):
        return text
    return f"{text} ({mean.low:.{digits}f}-{mean.high:.{digits}f})"


def _show_spread(spread: float | None) -> str:
    return "-" if spread is None else f"{spread:.1f}"


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
