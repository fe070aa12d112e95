"""The patch series as text: no compiler needed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = ROOT / "patches"
FILES = sorted(path.name for path in PATCHES.glob("*.patch"))


def read_series():
    lines = (PATCHES / "series").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_series_names_every_patch_in_order():
    assert read_series() == FILES
    assert FILES


@pytest.mark.parametrize("name", FILES)
def test_header_says_what_why_and_on_what_it_relies(name):
    header = (PATCHES / name).read_text().split("\n---\n")[0]
    for field in (
        "Subject: ",
        "\nWhy a patch: ",
        "\nRelies on: ",
        "\nForwarded: ",
        "\nLast-Update: ",
    ):
        assert field in header, f"{name} has no {field.strip()}"


@pytest.mark.parametrize("name", FILES)
def test_patches_only_insert(name):
    text = (PATCHES / name).read_text()
    body = text.split("\ndiff --git", 1)[1]
    removed = [line for line in body.splitlines() if re.match(r"-(?!--)", line)]
    assert not removed or "\nWhy-removed: " in text


def test_readme_of_the_series_names_every_patch_and_no_other():
    named = set(re.findall(r"\d{4}-[a-z0-9-]+\.patch", (PATCHES / "README.md").read_text()))
    assert named == set(FILES)


def test_the_pin_is_the_dependency():
    pin = dict(
        line.split(maxsplit=1)
        for line in (PATCHES / "UPSTREAM").read_text().splitlines()
        if not line.startswith("#")
    )
    dependency = f"{pin['name']}=={pin['version']}"
    assert f'"{dependency}"' in (ROOT / "pyproject.toml").read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", pin["sha256"])


def test_abi_number_is_the_same_on_both_sides():
    from restkv_local.native._library import ABI

    header = (PATCHES / "src" / "llama-restkv.h").read_text()
    assert re.search(rf"#define LLAMA_RESTKV_ABI {ABI}\b", header)


@pytest.mark.native
def test_series_applies_to_the_pin_and_exports_to_itself():
    downloads = ROOT / "build" / "downloads"
    if not list(downloads.glob("*.tar.gz")):
        pytest.skip("no sdist in build/downloads: the library was built elsewhere")
    check = [sys.executable, str(PATCHES / "check.py"), "--downloads", str(downloads)]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "export to themselves" in result.stdout
