"""`hybrid inspect`: what an image is made of, by its manifest and the ends of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio

from hybrid.cli.output import print_json, print_pairs, print_table
from hybrid.config import load_global_config
from hybrid.core.image import ImageRequest, open_image
from hybrid.core.units import human_size
from hybrid.mount.filesystems import HEAD_BYTES, detect


@click.command("inspect")
@click.argument("image")
@click.option("--platform", default="", metavar="OS/ARCH", help="For an index [this machine's].")
@click.option("--insecure", is_flag=True, help="Do not verify TLS; allow plain HTTP.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Global configuration file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    image: str, platform: str, insecure: bool, config_file: Path | None, as_json: bool
) -> None:
    """Show what IMAGE is made of. Fetches the ends of its layers, and little else."""
    request = ImageRequest(image, load_global_config(config_file), platform, insecure)
    found = trio.run(_inspect, request)
    if as_json:
        print_json(found)
        return
    print_pairs(
        [
            ("image", found["image"]),
            ("digest", found["digest"]),
            ("virtual size", human_size(found["virtual_size"])),
            ("layers", f"{len(found['layers'])}, {human_size(found['bytes_total'])} in all"),
            ("segments", found["segments"]),
            ("file system", found["fstype"]),
        ]
    )
    click.echo()
    print_table(
        ("LAYER", "SIZE", "COMPRESSION", "BLOCK", "UUID"),
        [
            (
                layer["name"][:19] if layer["name"].startswith("sha256:") else layer["name"],
                human_size(layer["size"]),
                layer["compression"],
                layer.get("block_size", "-"),
                layer["uuid"] or "-",
            )
            for layer in found["layers"]
        ],
    )


async def _inspect(request: ImageRequest) -> dict[str, Any]:
    image = await open_image(request)
    try:
        found = detect(await image.pread(0, min(HEAD_BYTES, image.size)))
        return image.describe() | {"fstype": found.fstype if found else None}
    finally:
        await image.aclose()
