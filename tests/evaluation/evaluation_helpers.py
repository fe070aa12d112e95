"""A tokenizer without a model, and samples and files in one line each."""

import json
import re

from restkv_local.evaluation.metrics.registry import METRICS
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request
from restkv_local.evaluation.tasks.registry import TASKS

_TOKEN = re.compile(r"\s?\w{1,4}|\s?[^\w\s]|\s")


def encode(text):
    """Tokens of up to four letters, as code points of their characters: about as many as a real model's."""
    return [tuple(map(ord, token)) for token in _TOKEN.findall(text)]


def decode(tokens):
    return "".join(chr(each) for token in tokens for each in token)


def count(text):
    return len(_TOKEN.findall(text))


def make_sample(*references, metric="substring", **fields):
    parts = {"task": "t", "id": "0", "context": "", "question": "", "max_new_tokens": 8}
    return Sample(**{**parts, "metric": metric, "references": references, **fields})


def score(name, prediction, *references, **extra):
    """What a metric gives for an answer."""
    return METRICS[name].rule(prediction, make_sample(*references, metric=name, extra=extra))


def run(name, **request):
    """Samples of a task."""
    request = {"count": count, "encode": encode, "decode": decode, "length": 2048, "n": 3} | request
    return list(TASKS[name].make(Request(**request)))


def write_jsonl(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
