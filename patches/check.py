"""Prove that the series applies to the pin and exports to itself, or export it from a git tree."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import prepare

# Neutral and constant: the same patches give the same commits everywhere.
_WHO = {
    "GIT_AUTHOR_NAME": "restkv-local",
    "GIT_AUTHOR_EMAIL": "restkv-local@users.noreply.github.com",
    "GIT_COMMITTER_NAME": "restkv-local",
    "GIT_COMMITTER_EMAIL": "restkv-local@users.noreply.github.com",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


def git(tree: Path, *args: str) -> str:
    """Run git in ``tree``; a failure ends the program with git's own words."""
    result = subprocess.run(
        ["git", "-c", "core.autocrlf=false", "-c", "commit.gpgsign=false", *args],
        cwd=tree, env=os.environ | _WHO, capture_output=True, text=True,
    )  # fmt: skip
    if result.returncode:
        sys.exit(f"git {args[0]} failed: {result.stdout}{result.stderr}")
    return result.stdout


def make_tree(tree: Path, downloads: Path) -> None:
    """Make a git tree of the pinned sources, tagged ``pin``, with the series as commits on top."""
    prepare.prepare(tree, downloads, patched=False)
    git(tree, "init", "--quiet")
    git(tree, "add", "--all", "--force", ".")
    git(tree, "commit", "--quiet", "--message", "pin", "--date", _WHO["GIT_COMMITTER_DATE"])
    git(tree, "tag", "pin")
    series = [str(patch) for patch in prepare.read_series()]
    git(tree, "am", "--quiet", "--committer-date-is-author-date", *series)


def export(tree: Path, folder: Path) -> list[Path]:
    """Write the commits since ``pin`` as patches into ``folder``."""
    flags = ["--zero-commit", "--no-signature", "--no-numbered", "--full-index", "--quiet"]
    git(tree, "format-patch", *flags, "--output-directory", str(folder), "pin")
    return sorted(folder.glob("*.patch"))


def main() -> None:
    """Check, or export with ``--export``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True, help="folder that keeps the sdist")
    parser.add_argument(
        "--export", type=Path, metavar="TREE", help="git tree to export from; made if missing"
    )
    options = parser.parse_args()

    if options.export:
        if not options.export.exists():
            make_tree(options.export, options.downloads)
        with tempfile.TemporaryDirectory() as scratch:
            exported = export(options.export, Path(scratch))
            if not exported:
                sys.exit(f"{options.export} has no commit since the tag pin: nothing to export")
            for old in prepare.read_series():
                old.unlink()
            for patch in exported:
                shutil.copy(patch, prepare.PATCHES)
        names = [patch.name for patch in exported]
        header = (prepare.PATCHES / "series").read_text().splitlines()[0]
        (prepare.PATCHES / "series").write_text("\n".join([header, *names]) + "\n")
        return

    with tempfile.TemporaryDirectory() as scratch:
        tree, out = Path(scratch) / "llama.cpp", Path(scratch) / "out"
        make_tree(tree, options.downloads)
        exported = export(tree, out)
        series = prepare.read_series()
        if [path.name for path in exported] != [path.name for path in series]:
            sys.exit(f"the series exports other files: {[path.name for path in exported]}")
        for new, old in zip(exported, series, strict=True):
            if new.read_bytes() != old.read_bytes():
                sys.exit(f"{old.name} does not export to itself: run make patches-export")
        # The build applies without git: both ways must give the same tree.
        plain = Path(scratch) / "plain"
        prepare.prepare(plain, options.downloads)
        for name in git(tree, "diff", "--name-only", "pin").split():
            if (plain / name).read_bytes() != (tree / name).read_bytes():
                sys.exit(f"git and patch-ng disagree on {name}")
    print(
        f"{len(series)} patches apply to {prepare.read_pin()['version']} and export to themselves"
    )


if __name__ == "__main__":
    main()
