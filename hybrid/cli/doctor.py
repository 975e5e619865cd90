"""``hybrid doctor``: what this machine offers, what is missing, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import click

from hybrid.cli.output import print_json, printable
from hybrid.mount.doctor import Examination, examine_machine
from hybrid.mount.findings import Finding, Status
from hybrid.mount.leftover import Leftover

_GROUPS = {
    "tcmu": "Mode tcmu",
    "fuse": "Mode fuse",
    "common": "Both modes",
    "leftovers": "Leftovers",
}


@click.command("doctor")
@click.argument("registries", metavar="[REGISTRY]...", nargs=-1)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Global configuration file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(
    ctx: click.Context, registries: tuple[str, ...], config_file: Path | None, as_json: bool
) -> None:
    """Examine this machine; changes nothing. Asks REGISTRY and the configured ones for a sign.

    Exit code: 0 both modes are usable, 20 only fuse, 21 only tcmu, 22 none.
    """
    found = examine_machine(config_file, registries)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    ctx.exit(found.code)


def _print(found: Examination) -> None:
    findings = [*found.findings, *(_as_finding(left) for left in found.leftovers)]
    if not any(finding.group == "leftovers" for finding in findings):
        findings.append(Finding("leftovers", "", Status.OK, "none"))
    width = max(len(finding.name) for finding in findings)
    for group, title in _GROUPS.items():
        click.echo(title)
        for finding in findings:
            if finding.group == group:
                _print_finding(finding, width)
    click.echo(f"tcmu: {printable(str(found.tcmu))}")
    click.echo(f"fuse: {printable(str(found.fuse))}")


def _print_finding(finding: Finding, width: int) -> None:
    start = f"  {finding.status.value:<7}  {finding.name:<{width}}  "
    click.echo(f"{start}{printable(finding.text)}")
    if finding.remedy:
        click.echo(f"{'':<{len(start)}}-> {printable(finding.remedy)}")


def _as_finding(left: Leftover) -> Finding:
    name = left.kind if left.name in left.text else f"{left.kind} {left.name}"
    return Finding("leftovers", name, Status.WARNING, left.text, left.remedy)
