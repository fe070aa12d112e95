"""The patch series as text: no compiler needed."""

import os
import re
import shutil
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


def test_an_export_that_fails_leaves_the_series(tmp_path):
    """A tree without the tag `pin`."""
    copy = tmp_path / "patches"
    shutil.copytree(PATCHES, copy)
    tree = tmp_path / "tree"
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    check = [
        sys.executable,
        str(copy / "check.py"),
        "--downloads",
        str(tmp_path),
        "--export",
        str(tree),
    ]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 1
    assert "git format-patch failed" in result.stderr
    assert sorted(path.name for path in copy.glob("*.patch")) == FILES


def test_an_sdist_that_is_not_there_is_one_line(tmp_path):
    prepare = [sys.executable, PATCHES / "prepare.py", "--downloads", tmp_path, tmp_path / "out"]
    environment = os.environ | {"RESTKV_SDIST": str(tmp_path / "none.tar.gz")}
    result = subprocess.run(prepare, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert result.stderr.endswith("none.tar.gz is no file; name the sdist or leave it unset\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.native
def test_series_applies_to_the_pin_and_exports_to_itself():
    downloads = ROOT / "build" / "downloads"
    if not list(downloads.glob("*.tar.gz")):
        pytest.skip("no sdist in build/downloads: the library was built elsewhere")
    check = [sys.executable, str(PATCHES / "check.py"), "--downloads", str(downloads)]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "export to themselves" in result.stdout
