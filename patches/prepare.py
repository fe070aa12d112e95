"""Turn the pinned sdist and the patch series into a llama.cpp source tree that can be built."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

PATCHES = Path(__file__).resolve().parent


def read_pin() -> dict[str, str]:
    """Return the fields of ``patches/UPSTREAM``: name, version and sha256."""
    lines = (PATCHES / "UPSTREAM").read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))


def read_series() -> list[Path]:
    """Return the patches in order of application."""
    lines = (PATCHES / "series").read_text().splitlines()
    return [PATCHES / line for line in lines if line and not line.startswith("#")]


def fetch_sdist(pin: dict[str, str], folder: Path) -> Path:
    """Download the pinned sdist with pip, unless it is already there, and check its sum.

    ``RESTKV_SDIST`` names a local copy for machines without an index.
    """
    sdist = folder / f"{pin['name'].replace('-', '_')}-{pin['version']}.tar.gz"
    if local := os.environ.get("RESTKV_SDIST"):
        sdist = Path(local)
        if not sdist.is_file():
            sys.exit(f"RESTKV_SDIST={local} is no file; name the sdist or leave it unset")
    elif not sdist.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Without isolation pip reads the sdist's metadata with our own build requirements.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--no-binary", pin["name"], "--dest", str(folder)]
        subprocess.run([*command, f"{pin['name']}=={pin['version']}"], check=True)
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != pin["sha256"]:
        sys.exit(
            f"{sdist} has sha256 {found}; patches/UPSTREAM asks for {pin['sha256']}: delete the file and try again"
        )
    return sdist


def unpack(sdist: Path, output: Path) -> None:
    """Unpack ``vendor/llama.cpp`` of the sdist into ``output``."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if parts[1:3] != ("vendor", "llama.cpp") or not member.isfile():
                continue
            if parts[3:] == (".git",):  # points to a repository that the sdist does not hold
                continue
            target = output.joinpath(*parts[3:])
            if ".." in target.parts:
                sys.exit(f"{sdist} holds a path that leaves its folder: {member.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
            target.chmod(member.mode)
            os.utime(
                target, (member.mtime, member.mtime)
            )  # a new unpacking rebuilds nothing that did not change


def apply(patch: Path, output: Path) -> None:
    """Apply one patch exactly: no fuzz, no git, no patch program."""
    import patch_ng

    parsed = patch_ng.fromfile(str(patch))
    if not parsed or not parsed.apply(root=str(output), fuzz=False):
        pin = read_pin()
        sys.exit(
            f"{patch.name} does not apply to {pin['name']} {pin['version']}: regenerate it against this pin"
        )


def prepare(output: Path, downloads: Path, *, patched: bool = True) -> None:
    """Fill ``output`` with the pinned llama.cpp, patched unless told otherwise; do nothing if it is there already."""
    pin = read_pin()
    series = read_series() if patched else []
    state = hashlib.sha256(
        repr(pin).encode() + b"".join(patch.read_bytes() for patch in series)
    ).hexdigest()
    stamp = output / ".restkv-state"
    if stamp.exists() and stamp.read_text() == state:
        return
    sdist = fetch_sdist(pin, downloads)
    shutil.rmtree(output, ignore_errors=True)
    unpack(sdist, output)
    for patch in series:
        apply(patch, output)
    stamp.write_text(state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder to fill with the source tree")
    parser.add_argument("--downloads", type=Path, required=True, help="folder that keeps the sdist")
    parser.add_argument(
        "--stock", action="store_true", help="leave the series out: the unpatched sources"
    )
    options = parser.parse_args()
    prepare(options.output, options.downloads, patched=not options.stock)
