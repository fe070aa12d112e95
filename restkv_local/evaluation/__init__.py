"""Tasks that measure eviction, as the field defines them: samples to ask, metrics that score the answers."""

from restkv_local.evaluation.metrics.registry import METRICS, score_sample
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, Task
from restkv_local.evaluation.tasks.registry import TASKS, find_tasks

__all__ = ["METRICS", "TASKS", "Request", "Sample", "Task", "find_tasks", "score_sample"]
