"""A rule of a user's own is known by the file that defines it."""

import importlib.util
import linecache
import sys

import pytest

from restkv_local.allocators.registry import ALLOCATORS
from restkv_local.evaluation.grid import FULL, Cell
from restkv_local.evaluation.own_rules import fingerprint_rules
from restkv_local.policies.registry import POLICIES
from restkv_local.policies.tova import TOVA

MINE = """
from restkv_local.allocators.uniform import Uniform
from restkv_local.policies.tova import TOVA

class Mine(TOVA):
    name = "mine"

class Halves(Uniform):
    name = "halves"
"""


@pytest.fixture
def fingerprint(tmp_path, monkeypatch):
    def find(source):
        path = tmp_path / "mine.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("mine", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", module)
        spec.loader.exec_module(module)
        monkeypatch.setitem(POLICIES, "mine", module.Mine)
        monkeypatch.setitem(ALLOCATORS, "halves", module.Halves)
        return fingerprint_rules([FULL, Cell("mine", "halves", "25%", "full", "auto")])

    return find


def test_own_rules_alone_have_a_fingerprint(fingerprint):
    assert list(fingerprint(MINE)) == ["policy mine", "allocation halves"]


def test_it_is_the_files_not_the_classes(fingerprint):
    before = fingerprint(MINE)
    assert fingerprint(MINE) == before
    changed = fingerprint(MINE + "\nFACTOR = 2\n")
    assert all(changed[name] != before[name] for name in before)


CELL = """
class Mine(TOVA):
    name = "mine"
    def score(self, observation):
        return %d
"""


def test_what_is_in_no_file_is_its_methods(monkeypatch):
    """As in a notebook: Python knows what was typed by a name that is no file's."""

    def find(number):
        source, name = CELL % number, f"<cell {number}>"
        lines = source.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, name, (len(source), None, lines, name))
        namespace = {"__name__": "nowhere", "TOVA": TOVA}
        exec(compile(source, name, "exec"), namespace)
        monkeypatch.setitem(POLICIES, "mine", namespace["Mine"])
        return fingerprint_rules([Cell("mine", "uniform", "25%", "full", "auto")])

    assert find(1)["policy mine"]
    assert find(1) != find(2)


def test_what_has_no_source_has_no_fingerprint(monkeypatch):
    namespace = {"__name__": "nowhere"}
    exec(MINE, namespace)
    monkeypatch.setitem(POLICIES, "mine", namespace["Mine"])
    cell = Cell("mine", "uniform", "25%", "full", "auto")
    assert fingerprint_rules([cell]) == {"policy mine": ""}


def test_a_method_whose_file_is_no_python_has_no_source(monkeypatch, tmp_path):
    """As README's example, compiled under the name of the page that it stands in."""
    page = tmp_path / "page.md"
    page.write_text("words\n" * 5 + '"""\n')
    namespace = {"__name__": "nowhere", "TOVA": TOVA}
    exec(compile(CELL % 1, str(page), "exec"), namespace)
    monkeypatch.setitem(POLICIES, "mine", namespace["Mine"])
    assert fingerprint_rules([Cell("mine", "uniform", "25%", "full", "auto")])
