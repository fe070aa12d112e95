"""Several questions about one text that is longer than the cache, on the demo model."""

from pathlib import Path

import pytest

from restkv_local import Llama
from restkv_local.chat.ask import ask
from restkv_local.documents import parse_document

pytestmark = [pytest.mark.native, pytest.mark.model]

FACTS = {
    "What is the code of the harbour safe?": "5904317",
    "What is the registration number of the red lighthouse?": "4182937",
}
STORY = (Path(__file__).parents[2] / "benchmarks" / "harbour.txt").read_text().splitlines()[:70]
STORY[50] = "The code of the harbour safe is 5904317."
TEXT = "\n".join(STORY)


@pytest.mark.parametrize("mode", ["shared", "ingest"])
def test_both_facts_are_found_in_one_reading_and_the_lines_are_named(mode):
    document = parse_document(TEXT.encode(), "harbour.txt")
    with Llama("demo", budget=384, n_ubatch=384, temp=0.0, n_predict=24) as llama:
        answers = list(ask(llama, document, list(FACTS), mode=mode))
    for answer in answers:
        number = FACTS[answer.question]
        assert number in answer.response
        assert number in answer.passages[0].text
        assert answer.kv["evicted"] > 400
    if mode == "ingest":
        assert answers[0].kv["policy"] == "kvzip"
