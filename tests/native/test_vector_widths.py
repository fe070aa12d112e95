"""A machine runs its own vector width; the others are compiled here for whatever it has."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from restkv_local.native import _library

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
HEADERS = next(iter(sorted(ROOT.glob("build/*/llama.cpp/ggml/include"))), None)


@pytest.mark.skipif(COMPILER is None, reason="no GCC or Clang")
@pytest.mark.skipif(HEADERS is None, reason="the build's sources are not here: make setup")
def test_all_vector_widths_agree(tmp_path):
    program = tmp_path / "vector_widths"
    includes = [f"-I{HEADERS}", f"-I{ROOT / 'patches' / 'src'}"]
    source = Path(__file__).with_name("vector_widths.cpp")
    folder = _library.library_folder()
    ggml = [f"-L{folder}", "-lggml-base", f"-Wl,-rpath,{folder}"]
    files = [str(source), "-o", str(program)]
    subprocess.run(
        [*shlex.split(COMPILER), "-std=gnu++17", "-O3", *includes, *files, *ggml], check=True
    )
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    off = dict(zip(map(int, lines[::2]), map(float, lines[1::2]), strict=True))
    assert off.keys() == {4, 8, 16}
    assert all(0 < value < 1e-6 for value in off.values())
