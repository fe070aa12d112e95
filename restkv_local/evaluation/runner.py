"""Runs the tasks of an evaluation over its grid, and leaves out what the log has already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from restkv_local.control_characters import show_path
from restkv_local.errors import ConfigError, InputError, RestKVError
from restkv_local.evaluation import (
    LENGTH,
    N_SAMPLES,
    N_SCORED,
    SEED,
    Question,
    likelihood,
    reconstruction,
)
from restkv_local.evaluation.answering import ask_samples
from restkv_local.evaluation.framing import Framing
from restkv_local.evaluation.grid import Cell
from restkv_local.evaluation.log import EvalLog, Item, Record
from restkv_local.evaluation.reading import OnFailure, Reader
from restkv_local.evaluation.tasks import ruler_questions
from restkv_local.evaluation.tasks.base import Request
from restkv_local.evaluation.tasks.registry import find_tasks
from restkv_local.evaluation.tasks.ruler_recorded import find_recorded
from restkv_local.llama import Llama

T = TypeVar("T")

# What reads a running text and asks nothing.
TEXT_TASKS: Final = {
    likelihood.NAME: "how well the text goes on: perplexity, KL divergence and same token beside the full cache",
    reconstruction.NAME: "how far the plan of each policy moves every layer's attention output",
}


class Measurement(Protocol):
    """One item, whatever its kind."""

    @property
    def item(self) -> Item:
        """What it is called in the log."""

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that differ for it."""

    def is_whole(self, record: Record) -> bool:
        """Tell whether a record of it has all that there is to measure."""

    def measure(
        self, reader: Reader, cells: Sequence[Cell], on_failure: OnFailure
    ) -> Iterator[Record]:
        """Measure it in each cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPlan:
    """What is to be measured.

    Attributes
    ----------
    tasks : sequence of str
        Tasks or families of the registry, ``"ppl"`` and ``"reconstruction"``.
    cells : sequence of Cell
        The grid.
    lengths : sequence of int or None
        Most tokens of prompt and answer, or tokens to read; None: each task's own.
    seeds : sequence of int
        Of the samples. Running text has none: the first counts. What an earlier seed has asked already, of a file
        that is read whole say, is left out.
    n : int, optional
        Samples of each task, length and seed.
    question : {"aware", "unknown"}
        Whether the question is known while the context is read.
    use_template : bool
        Whether the chat template is applied where samples ask for it.
    data, haystack : Path, optional
        As in :class:`~restkv_local.evaluation.tasks.base.Request`; ``haystack`` is also the running text.
    n_scored, stride : int
        Of ``ppl``; see :func:`~restkv_local.evaluation.tasks.text.cut_strides`.

    Raises
    ------
    InputError
        If the data folder does not exist.
    """

    tasks: Sequence[str]
    cells: Sequence[Cell]
    lengths: Sequence[int | None] = (None,)
    seeds: Sequence[int] = (SEED,)
    n: int | None = None
    question: Question = "aware"
    use_template: bool = True
    data: Path | None = None
    haystack: Path | None = None
    n_scored: int = N_SCORED
    stride: int | None = None

    def __post_init__(self) -> None:
        """Refuse a data folder that is not there: some tasks would take what they have without one."""
        if self.data is not None and not self.data.is_dir():
            raise InputError(
                f"{show_path(self.data)} is no folder: --data is where the tasks' files lie; leave it out where"
                " none is needed"
            )


@dataclass(slots=True)
class EvalProgress:
    """How far a run is.

    Attributes
    ----------
    done, total : int
        Cells of items; the total grows where nobody knows how many samples a file has.
    n_known : int
        Of those done, how many the log had.
    text : str
        What is being measured.
    """

    done: int = 0
    total: int = 0
    n_known: int = 0
    text: str = ""


@dataclass(slots=True)
class EvalResult:
    """The records of a plan, in its order, and a line for everything that could not be done."""

    records: list[Record] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    n_expected: int
    seeds: Sequence[int]
    measurements: Callable[[], Iterator[Measurement]]


def check_tasks(names: Sequence[str]) -> None:
    """Refuse names of no task, before a model is loaded.

    Raises
    ------
    ConfigError
        If there is none of such a name.
    """
    for name in names:
        if name not in TEXT_TASKS:
            try:
                find_tasks(name)
            except ConfigError as error:
                raise ConfigError(f"{error}; {' and '.join(TEXT_TASKS)} are tasks too") from None


def find_stand_ins(plan: EvalPlan) -> dict[str, str]:
    """Return the tasks of a plan that ask about the shipped manual, with the files that RULER's questions come from."""
    names = [
        task.name for name in plan.tasks if name not in TEXT_TASKS for task in find_tasks(name)
    ]
    requests = [Request(count=len, length=length, data=plan.data) for length in plan.lengths]
    return {
        f"ruler-{name}": file
        for name, file in ruler_questions.FILES.items()
        if f"ruler-{name}" in names
        and ruler_questions.find_file(name, plan.data) is None
        and any(find_recorded(name, request) is None for request in requests)
    }


def run_eval(
    llama: Llama,
    plan: EvalPlan,
    settings: Mapping[str, Any],
    log: EvalLog,
    *,
    on_progress: Callable[[EvalProgress], None] = lambda progress: None,
    on_failure: Callable[[str], None] = lambda line: None,
) -> EvalResult:
    """Measure what the log lacks.

    Parameters
    ----------
    llama : Llama
        The model.
    plan : EvalPlan
        What is wanted.
    settings : mapping
        Fields of Config that all cells share.
    log : EvalLog
        What is there, and where the rest goes.
    on_progress : callable
        Called before and after each item and after each cell.
    on_failure : callable
        Called with a line about each task or cell that cannot be done, once; the others go on.

    Returns
    -------
    EvalResult
        Also the records that were there already.

    Raises
    ------
    InputError
        If the log cannot be written, or holds scores of a sample that has changed since.
    """
    run = _Run(Reader(llama, settings), log, on_progress, on_failure)
    run.measure(plan)
    return run.result


class _Run:
    """The state of one run."""

    def __init__(
        self,
        reader: Reader,
        log: EvalLog,
        on_progress: Callable[[EvalProgress], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._reader = reader
        self._log = log
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._progress = EvalProgress()
        self._first_seeds: dict[Item, int] = {}
        for item, _ in log.records:
            self._first_seed(item)
        self.result = EvalResult()

    def measure(self, plan: EvalPlan) -> None:
        cells = [cell for cell in plan.cells if self._can_be(cell)]
        jobs = list(_jobs(self._reader, plan)) if cells else []
        progress = self._progress
        progress.total = sum(job.n_expected for job in jobs) * len(cells)
        for job in jobs:
            n_before = progress.done
            progress.text = job.name
            self._on_progress(progress)
            asked_by: set[int] = set()
            n_new = 0
            for measurement in self._guard(job.name, job.measurements()):
                first = self._first_seed(measurement.item)
                # Counted again it would make intervals narrower than they are.
                if first != measurement.item.seed:
                    asked_by.add(first)
                    continue
                n_new += 1
                wanted = measurement.cells(cells)
                progress.done += len(cells) - len(wanted)
                self._measure_item(job.name, measurement, wanted)
            if n_new == 0 and asked_by.difference(job.seeds):
                seeds = ", ".join(map(str, sorted(asked_by)))
                self._fail(
                    job.name,
                    ConfigError(
                        f"the log has the same samples by --seed {seeds}; name that, or another log"
                    ),
                )
            # Now it is known how many there were.
            progress.total += progress.done - n_before - job.n_expected * len(cells)
        self._on_progress(progress)

    def _can_be(self, cell: Cell) -> bool:
        try:
            self._reader.check(cell)
        except RestKVError as error:
            self._fail(str(cell), error)
            return False
        return True

    def _first_seed(self, item: Item) -> int:
        """Return the seed that drew the same sample first, this run or the log's."""
        return self._first_seeds.setdefault(replace(item, seed=0, id=""), item.seed)

    def _measure_item(self, name: str, measurement: Measurement, cells: Sequence[Cell]) -> None:
        """Measure one item in the cells that the log lacks."""
        if not cells:
            self._fail(name, ConfigError("no policy of the grid evicts anything, so nothing moves"))
        self._log.check(measurement.item)
        progress = self._progress
        known = self._log.records
        missing = [
            cell
            for cell in cells
            if (record := known.get((measurement.item, cell))) is None
            or not measurement.is_whole(record)
        ]
        n_known = len(cells) - len(missing)
        progress.n_known += n_known
        progress.done += n_known
        self._on_progress(progress)
        if missing:

            def on_failure(cell: Cell, error: RestKVError) -> None:
                self._fail(f"{name}, {cell}", error)
                progress.done += cell in missing

            found = measurement.measure(self._reader, missing, on_failure)
            for record in self._guard(name, found):
                self._log.add(record)
                progress.done += 1
                self._on_progress(progress)
        keys = ((measurement.item, cell) for cell in cells)
        self.result.records += [known[key] for key in keys if key in known]

    def _guard(self, name: str, things: Iterator[T]) -> Iterator[T]:
        """Yield until something cannot be done; a log that cannot be written still ends the run."""
        try:
            yield from things
        except RestKVError as error:
            self._fail(name, error)

    def _fail(self, what: str, error: RestKVError) -> None:
        line = f"{what}: {error}"
        if line not in self.result.failures:
            self.result.failures.append(line)
            self._on_failure(line)


def _jobs(reader: Reader, plan: EvalPlan) -> Iterator[_Job]:
    """Yield what is to be measured, length by length and seed by seed."""
    framing = Framing(reader.llama, use_template=plan.use_template)
    tasks = [task for name in plan.tasks if name not in TEXT_TASKS for task in find_tasks(name)]
    for length in plan.lengths:
        for seed in plan.seeds:
            request = make_request(reader.llama, framing, plan, length, seed)
            for task in dict.fromkeys(tasks):
                n = plan.n if plan.n is not None else 0 if task.needs else N_SAMPLES
                ask = partial(ask_samples, task, request, framing, plan.question, reader)
                yield _Job(f"{task.name}{_say(length)}", n, plan.seeds, ask)
        yield from _text_jobs(reader, plan, length)


def _text_jobs(reader: Reader, plan: EvalPlan, length: int | None) -> Iterator[_Job]:
    n = N_SAMPLES if plan.n is None else plan.n
    text: dict[str, Any] = {
        "file": plan.haystack, "length": length or LENGTH, "seed": plan.seeds[0], "n": n,
    }  # fmt: skip
    if likelihood.NAME in plan.tasks:
        yield _Job(
            f"{likelihood.NAME}{_say(length)}",
            n,
            plan.seeds[:1],
            lambda: likelihood.predict_strides(
                reader, **text, n_scored=plan.n_scored, stride=plan.stride
            ),
        )
    if reconstruction.NAME in plan.tasks:
        yield _Job(
            f"{reconstruction.NAME}{_say(length)}",
            n,
            plan.seeds[:1],
            lambda: reconstruction.plan_strides(reader, **text),
        )


def make_request(
    llama: Llama, framing: Framing, plan: EvalPlan, length: int | None, seed: int
) -> Request:
    """Return what tasks are asked for, with this model's tokens."""
    native = llama.native

    def encode(text: str) -> list[int]:
        return native.tokenize(text, add_special=False)

    def decode(tokens: Sequence[int]) -> str:
        # A cut may go through a character: what is left of it is left out.
        return b"".join(native.piece(token, special=True) for token in tokens).decode(
            errors="ignore"
        )

    return Request(
        count=lambda text: len(encode(text)),
        encode=encode,
        decode=decode,
        seed=seed,
        length=length,
        n_template=framing.n_template if framing.has_template else 0,
        n=plan.n,
        data=plan.data,
        haystack=plan.haystack,
    )


def _say(length: int | None) -> str:
    return "" if length is None else f" at {length:,} tokens"
