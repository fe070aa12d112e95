"""The Python examples of README run as they stand."""

import re
from contextlib import suppress
from pathlib import Path

import pytest

from restkv_local.policies.registry import POLICIES

pytestmark = [pytest.mark.native, pytest.mark.model]

ROOT = Path(__file__).parents[2]
EVAL = "eval demo --task niah --length 400 -n 1 --policy newest-looked-at --budget 50%"
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(code, tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mine.py", *EVAL.split()])
    ours = POLICIES.copy()
    try:
        with suppress(SystemExit):  # of a script that is a command line
            exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    finally:
        for name in POLICIES.keys() - ours.keys():
            del POLICIES[name]
    said = capsys.readouterr().out
    assert ("newest-looked-at" in said) == ("register_policy" in code)
    assert ("4182937. lines 22-23" in said) == ("harbour.txt" in code)
    assert said.strip()
