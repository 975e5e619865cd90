"""An examination of this machine, for ``hybrid doctor``: both modes, what they share, leftovers.

Changes nothing, and touches nothing that is mounted. Every look that could wait is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import trio

from hybrid.config import GlobalConfig, load_global_config
from hybrid.core.reachability import ask_registries, check_host
from hybrid.errors import HybridError
from hybrid.mount.findings import Finding, Status, Verdict, examine
from hybrid.mount.fuse_support import examine_filesystems, examine_fuse
from hybrid.mount.kernel_support import Machine
from hybrid.mount.leftover import Leftover
from hybrid.mount.leftovers import find_leftovers
from hybrid.mount.open_files import sees_all
from hybrid.mount.surroundings import (
    examine_cache,
    examine_state,
    find_udev,
    find_versions,
)
from hybrid.mount.tcmu_support import examine_tcmu

_REGISTRY_SECONDS = 5.0


class DoctorCode(IntEnum):
    """Exit codes of ``hybrid doctor``: which modes are usable."""

    BOTH = 0
    ONLY_FUSE = 20
    ONLY_TCMU = 21
    NONE = 22


@dataclass(frozen=True)
class Examination:
    """All that was found."""

    findings: list[Finding]
    leftovers: list[Leftover]
    tcmu: Verdict
    fuse: Verdict

    @property
    def code(self) -> DoctorCode:
        if self.tcmu.usable:
            return DoctorCode.BOTH if self.fuse.usable else DoctorCode.ONLY_TCMU
        return DoctorCode.ONLY_FUSE if self.fuse.usable else DoctorCode.NONE

    def to_json(self) -> dict[str, Any]:
        return {
            "modes": {"tcmu": self.tcmu.to_json(), "fuse": self.fuse.to_json()},
            "findings": [found.to_json() for found in self.findings],
            "leftovers": [left.to_json() for left in self.leftovers],
        }


def examine_machine(config_file: Path | None, registries: Sequence[str]) -> Examination:
    """Look at everything. ``registries`` (``HOST[:PORT]``) are asked besides the configured ones.

    Raises UsageError for one that is no host. Call it outside any trio run: it forks.
    """
    named = [check_host(text) for text in registries]
    machine = Machine()
    tcmu, tcmu_verdict = examine_tcmu(machine)
    fuse, fuse_verdict = examine_fuse(machine)
    findings = [*tcmu, *fuse, *find_versions(machine), find_udev(), examine_filesystems(machine)]
    findings.append(examine("common", "state directory", examine_state))
    config, found = _load(config_file)
    findings.append(found)
    if config is not None:
        findings.append(examine_cache(config))
    leftovers, unknown = _look_for_leftovers()
    # Last, as looking up names starts threads, after which no process should fork.
    findings += unknown + _ask(config, named)
    return Examination(findings, leftovers, tcmu_verdict, fuse_verdict)


def _load(config_file: Path | None) -> tuple[GlobalConfig | None, Finding]:
    try:
        config = load_global_config(config_file)
    except HybridError as error:
        text, remedy = error.message, error.hint
        return None, Finding("common", "configuration", Status.PROBLEM, text, remedy)
    text = str(config.file) if config.file else "built-in defaults, there is no file"
    return config, Finding("common", "configuration", Status.OK, text)


def _look_for_leftovers() -> tuple[list[Leftover], list[Finding]]:
    try:
        found = find_leftovers()
    except HybridError as error:
        text, remedy = error.message, error.hint
        return [], [Finding("leftovers", "search", Status.PROBLEM, text, remedy)]
    if sees_all():
        return found, []
    text = "only mounts of this state directory: not all processes can be seen from here"
    return found, [Finding("leftovers", "search", Status.INFO, text)]


def _ask(config: GlobalConfig | None, named: list[str]) -> list[Finding]:
    if config is None:
        return []
    hosts = list(dict.fromkeys([*config.registries, *named]))
    if not hosts:
        return []
    try:
        answers = trio.run(ask_registries, config, hosts, _REGISTRY_SECONDS)
    except HybridError as error:
        return [Finding("common", "registries", Status.PROBLEM, error.message, error.hint)]
    return [
        Finding("common", f"registry {host}", Status.WARNING, answer.message, answer.hint)
        if isinstance(answer, HybridError)
        else Finding("common", f"registry {host}", Status.OK, answer)
        for host, answer in zip(hosts, answers, strict=True)
    ]
