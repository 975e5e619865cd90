"""Write the two lock files: names, versions and sha256 hashes, no addresses.

    requirements-build.lock   what builds pyfuse3 (it has no wheel) and hybrid itself
    requirements.lock         what hybrid needs to run and to be developed

pip resolves the versions on this machine, and is asked again for the same versions on each other
machine type, so that the lock holds one hash per file that any of them would install.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# pyfuse3's own build requirements (its pyproject.toml); hybrid needs setuptools only.
PYFUSE3_BUILD = ["setuptools>=78.1.1", "setuptools_scm>=8.0", "Cython"]
PYTHON = "3.11"
MACHINES = ("x86_64", "aarch64")
# Debian 12 has glibc 2.36; pip does not expand "2_36" to the older tags that wheels carry.
GLIBC_MINORS = range(5, 37)

Hashes = dict[tuple[str, str], set[str]]


def pip_report(requirements: Sequence[str], *options: str) -> list[dict[str, object]]:
    """What ``pip install`` would install. Raises CalledProcessError if pip finds no solution."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), *options, *requirements]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        installs: list[dict[str, object]] = json.loads(report.read_text())["install"]
        return installs


def collect(installs: Iterable[dict[str, object]], into: Hashes) -> None:
    """Add the hash of every file of a report under its (name, version)."""
    for install in installs:
        metadata, download = install["metadata"], install["download_info"]
        assert isinstance(metadata, dict)
        assert isinstance(download, dict)
        name = metadata["name"].lower().replace("_", "-").replace(".", "-")
        digest = download["archive_info"]["hashes"]["sha256"]
        into.setdefault((name, metadata["version"]), set()).add(digest)


def foreign_options(machine: str) -> list[str]:
    """Options that make pip choose as it would on Debian 12 on ``machine``."""
    options = ["--no-deps", "--only-binary", ":all:", "--python-version", PYTHON]
    options += ["--target", "unused", "--implementation", "cp"]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC_MINORS)]
    for tag in [*tags, f"manylinux2014_{machine}", f"linux_{machine}"]:
        options += ["--platform", tag]
    return options


def lock(requirements: Sequence[str]) -> Hashes:
    """Resolve on this machine, then add the files of the other machine types."""
    hashes: Hashes = {}
    try:
        collect(pip_report(requirements), hashes)
    except subprocess.CalledProcessError as error:
        sys.exit(f"tools/lock: pip failed:\n{error.stderr}")
    for name, version in list(hashes):
        for machine in MACHINES:
            try:
                collect(pip_report([f"{name}=={version}"], *foreign_options(machine)), hashes)
            except subprocess.CalledProcessError:
                print(f"{name} {version}: no wheel for {machine}, built there", file=sys.stderr)
    return hashes


def write(path: Path, hashes: Hashes) -> None:
    lines = ["# Written by tools/lock for Debian 12 (Python 3.11; x86_64, aarch64). Do not edit."]
    for (name, version), digests in sorted(hashes.items()):
        parts = [f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in sorted(digests))]
        lines.append(" \\\n    ".join(parts))
    path.write_text("\n".join(lines) + "\n")
    print(f"{path.name}: {len(hashes)} packages")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"]
    wanted += project["project"]["optional-dependencies"]["dev"]
    build = [*project["build-system"]["requires"], *PYFUSE3_BUILD]
    write(ROOT / "requirements-build.lock", lock(build))
    write(ROOT / "requirements.lock", lock(wanted))


if __name__ == "__main__":
    main()
