"""Names of the tasks; the command line and the tests read this table."""

from __future__ import annotations

from typing import Final

from restkv_local.errors import ConfigError
from restkv_local.evaluation.tasks import (
    arithmetic,
    classification,
    infinitebench,
    lambada,
    longbench,
    niah,
    ruler,
)
from restkv_local.evaluation.tasks.base import Task

TASKS: Final[dict[str, Task]] = {
    task.name: task
    for task in (
        *niah.TASKS,
        *ruler.TASKS,
        *longbench.TASKS,
        *infinitebench.TASKS,
        *arithmetic.TASKS,
        *classification.TASKS,
        *lambada.TASKS,
    )
}


def find_tasks(name: str) -> tuple[Task, ...]:
    """Return the task of this name, or all tasks of the family of this name.

    ``niah`` is one task, ``needles`` are four, ``ruler`` is thirteen.

    Raises
    ------
    ConfigError
        If there is neither.
    """
    if name in TASKS:
        return (TASKS[name],)
    family = tuple(task for task in TASKS.values() if task.family == name)
    if not family:
        families = dict.fromkeys(task.family for task in TASKS.values())
        raise ConfigError(
            f"task must be one of {', '.join(families)}, or one task of them such as ruler-vt; got task={name!r}"
        )
    return family
