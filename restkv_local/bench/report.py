"""Writes a run as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from restkv_local.bench.caches import Cache
from restkv_local.bench.ceiling import Ceiling, find_ceilings
from restkv_local.bench.depths import SpeedLeft, compare_depths
from restkv_local.bench.figures import Figure, summarise
from restkv_local.bench.log import Sample, read_bench_log
from restkv_local.bench.profile import PARTS
from restkv_local.control_characters import show_path
from restkv_local.errors import InputError
from restkv_local.markdown import write_table

_PHASES: Final = {"reading": "ttft", "writing": "tg"}


@dataclass(frozen=True, slots=True)
class BenchReport:
    """A run, ready to be written.

    Attributes
    ----------
    metadata : mapping
        See :func:`~restkv_local.bench.metadata.collect_metadata`; with ``n_prompt`` and ``n_gen``.
    caches : sequence of Cache
        The columns.
    samples : sequence of Sample
        The cells.
    """

    metadata: Mapping[str, Any]
    caches: Sequence[Cache]
    samples: Sequence[Sample]

    @classmethod
    def from_log(cls, path: Path) -> BenchReport:
        """Return what a log holds.

        Raises
        ------
        InputError
            If the file cannot be read, is no log of ``restkv bench``, or lacks what a table of this version shows.
        """
        metadata, samples = read_bench_log(path)
        columns = {sample.cache: Cache(sample.cache, sample.options) for sample in samples}
        report = cls(metadata, list(columns.values()), samples)
        try:
            report.to_json()
            report.to_markdown(with_profile=True)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{show_path(path)} does not hold what a table shows ({type(error).__name__}: {error}); measure again"
                " with another log"
            ) from error
        return report

    @property
    def names(self) -> list[str]:
        """The columns' headings."""
        return [cache.name for cache in self.caches]

    @property
    def deepest(self) -> int:
        """The greatest depth that was measured in any column."""
        return max((s.depth for s in self.samples if s.result is not None), default=0)

    def figures(self) -> list[Figure]:
        """Return the medians."""
        n_prompt, n_gen = self.metadata["n_prompt"], self.metadata["n_gen"]
        return summarise(self.samples, self.names, n_prompt=n_prompt, n_gen=n_gen)

    def speeds_left(self) -> list[SpeedLeft]:
        """Return what is left of every column's speed behind more tokens."""
        n_prompt, n_gen = self.metadata["n_prompt"], self.metadata["n_gen"]
        return compare_depths(self.samples, self.names, n_prompt=n_prompt, n_gen=n_gen)

    def ceilings(self) -> list[Ceiling]:
        """Return what writing could gain at best in columns that store rows as the whole cache does."""
        like = [c.name for c in self.caches if _stored(c) == ("f16", "f16")]
        return find_ceilings(self.samples, like, n_gen=self.metadata["n_gen"])

    def commits(self) -> list[str]:
        """Return the commits that measured, each once."""
        return list(dict.fromkeys(s.commit for s in self.samples if s.commit is not None))

    def errors(self) -> list[str]:
        """Return a line for each cell that could not be measured."""
        lines = (f"{s.cache} @ d{s.depth}: {s.error}" for s in self.samples if s.error is not None)
        return list(dict.fromkeys(lines))

    def profile(self, phase: str) -> dict[str, dict[str, float]]:
        """Return the median seconds of each part at the greatest depth, by the columns that were measured there.

        Parameters
        ----------
        phase : {"reading", "writing"}
            Time to first token, or tg.
        """
        results: dict[str, list[dict[str, float]]] = {}
        for sample in self.samples:
            if sample.result is not None and sample.depth == self.deepest:
                results.setdefault(sample.cache, []).append(sample.result[phase])
        return {
            name: {part: statistics.median(r[part] for r in results[name]) for part in PARTS}
            for name in self.names
            if name in results
        }

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``restkv bench --json`` prints."""
        return {
            "metadata": {**self.metadata, "commits": self.commits()},
            "caches": [{"name": c.name, "options": dict(c.options)} for c in self.caches],
            "figures": [asdict(figure) for figure in self.figures()],
            "speeds_left": [asdict(left) for left in self.speeds_left()],
            "ceilings": [asdict(ceiling) for ceiling in self.ceilings()],
            "profile": {phase: self.profile(phase) for phase in _PHASES},
            "errors": self.errors(),
            "samples": [asdict(sample) for sample in self.samples],
        }

    def to_csv(self) -> str:
        """Return one line for each figure, with a line of names first."""
        fields = ("cache", "test", "unit", "depth", "median", "mad", "n", "ratio")
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(figure) for figure in self.figures())
        return text.getvalue()

    def to_markdown(self, *, with_profile: bool = False) -> str:
        """Return what was measured, on what, and tables."""
        parts = [
            describe_run(self.metadata, self.commits()),
            _figures_table(self),
            _depths_table(self),
        ]
        if with_profile:
            parts += [_profile_table(self, phase) for phase in _PHASES]
            parts.append(_ceilings_table(self.ceilings()))
        if errors := self.errors():
            parts.append("\n".join(f"- not measured: {line}" for line in errors))
        return "\n\n".join(part for part in parts if part)


def _stored(cache: Cache) -> tuple[str, str]:
    """How a column stores keys and values."""
    return cache.options.get("type_k", "f16"), cache.options.get("type_v", "f16")


def describe_run(metadata: Mapping[str, Any], commits: Sequence[str]) -> str:
    """Say in three lines what was measured, with which software, on what."""
    size = metadata["model_bytes"] / 2**20
    commit = f", commit {', '.join(commits)}" if commits else ""
    return "\n".join(
        [
            f"- model: {metadata['model']} ({metadata['architecture']}, {metadata['quantisation']},"
            f" {size:,.0f} MiB)",
            f"- machine: {', '.join(metadata['devices'])}; {metadata['n_threads']} of"
            f" {metadata['cpu_count']} cores, {metadata['memory_gib']} GiB, {metadata['system']}",
            f"- software: restkv-local {metadata['version']}{commit}, llama.cpp of {metadata['llama_cpp']}",
        ]
    )


def _figures_table(report: BenchReport) -> str:
    rows: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in report.figures():
        rows.setdefault((figure.row, figure.unit), {})[figure.cache] = figure
    if not rows:
        return ""
    table = write_table(
        ["test", "unit", *report.names],
        (
            [
                row,
                unit,
                *(_show(figures.get(name), name == report.names[0]) for name in report.names),
            ]
            for (row, unit), figures in rows.items()
        ),
        n_left=2,
    )
    counts = [figure.n for figure in report.figures()]
    few, many = min(counts), max(counts)
    rounds = f"{few} to {many} rounds" if few < many else f"{many} round{'s' if many > 1 else ''}"
    return (
        f"{table}\n\nMedian of {rounds} ± median distance to it (where there are several);"
        f" in brackets: times the value of `{report.names[0]}` in the same round."
    )


def _show(figure: Figure | None, is_first: bool) -> str:
    if figure is None:
        return "-"
    text = _with_spread(figure, figure.digits)
    return text if figure.ratio is None or is_first else f"{text} ({figure.ratio:.2f})"


def _with_spread(measured: Figure | SpeedLeft, digits: int) -> str:
    """Median and, where there are several rounds and it does not round to nothing, the distance to it."""
    text = f"{measured.median:,.{digits}f}"
    if measured.n > 1 and measured.mad >= 0.5 * 10**-digits:
        text += f" ±{measured.mad:,.{digits}f}"
    return text


def _depths_table(report: BenchReport) -> str:
    rows: dict[str, dict[str, SpeedLeft]] = {}
    for left in report.speeds_left():
        rows.setdefault(f"{left.test} @ d{left.depth} / d{left.base}", {})[left.cache] = left
    if not rows:
        return ""
    names = [name for name in report.names if any(name in row for row in rows.values())]
    lines = (
        [test, *(_with_spread(row[name], 2) if name in row else "-" for name in names)]
        for test, row in rows.items()
    )
    return write_table(["speed left, same round", *names], lines, n_left=1)


def _profile_table(report: BenchReport, phase: str) -> str:
    profile = report.profile(phase)
    if not profile:
        return ""
    n_gen = report.metadata["n_gen"] if phase == "writing" else ""
    test = f"{_PHASES[phase]}{n_gen} @ d{report.deepest}"

    def cells(part: str) -> list[str]:
        found = []
        for parts in profile.values():
            total = sum(parts.values())
            found.append(f"{parts[part] * 1e3:,.0f} ({parts[part] / (total or 1):.1%})")
        return found

    rows = ([part, *cells(part)] for part in PARTS)
    return write_table([f"where {test} goes, ms", *profile], rows, n_left=1)


def _ceilings_table(ceilings: Sequence[Ceiling]) -> str:
    if not ceilings:
        return ""
    return write_table(
        [
            "writing beside `full`",
            "attention's share of full",
            "ceiling",
            "reached",
            "of the ceiling",
        ],
        (
            [
                f"{c.cache} @ d{c.depth}",
                f"{c.attention:.0%}",
                f"{c.ceiling:.2f} x",
                f"{c.reached:.2f} x",
                f"{c.reached / c.ceiling:.0%}",
            ]
            for c in ceilings
        ),
        n_left=1,
    )
