"""The real ``hybrid mount``: its arguments, and a golden image in an OCI layout."""

import json
import subprocess
import sys

import pytest
from support import golden_image
from support.mounting import MountBench


def hybrid(bench: MountBench, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "hybrid", *map(str, arguments)],
        env=bench.environment,
        cwd=bench.directory,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["image"], ["image", "mnt", "--no-mount"]])
def test_a_mount_point_or_no_mount(bench: MountBench, arguments: list[str]) -> None:
    done = hybrid(bench, "mount", *arguments)
    assert done.returncode == 2
    assert "give a MOUNTPOINT, or --no-mount" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_tells_the_options(bench: MountBench) -> None:
    done = hybrid(bench, "mount", "--help")
    for option in ("--mode", "--no-mount", "--foreground", "--platform", "--insecure", "--config"):
        assert option in done.stdout


@pytest.fixture
def image(bench: MountBench) -> str:
    """Named relative to the directory in which the commands run."""
    golden_image.layout(bench.directory / "layout")
    return "oci:layout:v1"


def test_the_mount_point_is_printed_when_it_can_be_read(bench: MountBench, image: str) -> None:
    done = hybrid(bench, "mount", image, "mnt")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{bench.mountpoint}\n"
    assert (bench.mountpoint / "bin").is_dir()
    (listed,) = bench.list()
    assert (listed["state"], listed["fstype"], listed["image"]) == ("ready", "ext4", image)
    assert listed["digest"].startswith("sha256:")
    assert listed["stats"]["bytes_total"] > listed["stats"]["bytes_fetched"] == 0  # all is local
    row = hybrid(bench, "list").stdout.splitlines()[1].split()
    assert row[:5] == [listed["id"], "ready", "fuse", "ro", "ext4"]
    assert bench.succeed("umount", "mnt") == ""
    assert bench.leftovers() == []


def test_the_file_is_printed(bench: MountBench, image: str) -> None:
    done = hybrid(bench, "mount", "--no-mount", image)
    assert done.stdout == f"{bench.list()[0]['file']}\n"
    bench.succeed("umount", done.stdout.strip())


def test_the_result_as_json(bench: MountBench, image: str) -> None:
    record = json.loads(hybrid(bench, "mount", "--no-mount", image, "--json").stdout)
    (listed,) = bench.list()
    assert record == {key: value for key, value in listed.items() if key != "stats"}
    bench.succeed("umount", record["id"])


def test_a_missing_image_is_one_line(bench: MountBench) -> None:
    done = hybrid(bench, "mount", "oci:nowhere", "mnt")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert bench.leftovers() == []
