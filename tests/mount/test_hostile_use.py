"""Uses that nobody means: empty arguments, races, directories that are gone, stopped servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from support.builders import Write, build_lsmt
from support.mounting import MIB, ImageMaker, MountBench, poll_until

from hybrid.errors import (
    BusyError,
    MountPointError,
    NotFoundError,
    UsageError,
)


def test_empty_and_short_targets_name_nothing(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("ext4"), bench.mountpoint)
    assert "empty" in bench.fail("umount", "", code=UsageError.exit_code)
    bench.fail("umount", record["id"][:3], code=NotFoundError.exit_code)
    assert bench.state_of(record) == "ready"
    bench.succeed("umount", record["id"][:4])


def test_empty_mountpoint_is_not_the_current_directory(bench: MountBench) -> None:
    command = ["-m", "hybrid", "mount", "/no/such.json", ""]
    done = subprocess.run(
        [bench.command()[0], *command],
        env=bench.environment, cwd=bench.directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == UsageError.exit_code
    assert "MOUNTPOINT is empty" in done.stderr


def test_of_two_mounts_of_one_mount_point_one_wins(bench: MountBench, images: ImageMaker) -> None:
    """Both pass the first look, since neither has mounted yet; one of them claims the place."""
    raw = images.get("ext4")
    first = subprocess.Popen(
        bench.command("mount", raw, bench.mountpoint, "--open", "hang"),
        env=bench.environment, cwd=bench.directory,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    poll_until(lambda: any(found["mountpoint"] for found in bench.list()), "the first claim")
    line = bench.fail("mount", raw, bench.mountpoint, code=BusyError.exit_code)
    assert "another mount" in line
    assert len(bench.list()) == 1
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=20)
    bench.assert_clean()
    bench.mount(raw, bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)


def test_current_directory_that_is_gone(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("ext4"), bench.mountpoint)
    gone = bench.directory / "gone"
    gone.mkdir()
    in_gone = ("sh", "-c", f'cd "{gone}"; rmdir "{gone}" 2>/dev/null; exec "$@"', "sh")
    line = bench.fail("umount", "some/where", code=MountPointError.exit_code, prefix=in_gone)
    assert "current directory" in line
    gone.mkdir()
    done = bench.run("umount", record["id"], prefix=in_gone)
    assert (done.returncode, done.stderr) == (0, "")


def test_umount_from_inside(bench: MountBench, images: ImageMaker) -> None:
    bench.mount(images.get("ext4"), bench.mountpoint)
    inside = ("sh", "-c", f'cd "{bench.mountpoint}"; exec "$@"', "sh")
    done = bench.run("umount", bench.mountpoint, prefix=inside)
    assert (done.returncode, done.stderr) == (0, "")


def test_sigterm_spares_the_readers_of_an_exposed_file(
    bench: MountBench, images: ImageMaker
) -> None:
    raw = images.get("none")
    record = bench.mount(raw)
    with open(record["file"], "rb", buffering=0) as file:
        os.kill(record["pid"], signal.SIGTERM)
        log = Path(record["log"])
        poll_until(lambda: "in use" in log.read_text(), "the refusal in the log")
        assert os.pread(file.fileno(), MIB, 0) == raw.read_bytes()[:MIB]
    bench.assert_clean()


def test_a_name_that_is_no_utf8_is_printed_as_it_is(bench: MountBench, images: ImageMaker) -> None:
    raw = images.get("ext4")
    config = bench.directory / "image.json"
    blob = bench.directory / "layer"
    bench.environment["PYTHONIOENCODING"] = "utf-8"
    from_writer(raw, blob)
    config.write_text(json.dumps({"lowers": [{"file": str(blob)}]}))
    place = os.fsencode(bench.directory) + b"/caf\xe9"
    os.mkdir(place)
    done = subprocess.run(
        [bench.command()[0], "-m", "hybrid", "mount", str(config), place],
        env=bench.environment, cwd=bench.directory, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, place + b"\n"), done.stderr
    bench.succeed("umount", os.fsdecode(place))


def from_writer(raw: Path, layer: Path) -> None:
    """A plain layer with the whole raw disk in it."""
    data = raw.read_bytes()
    layer.write_bytes(build_lsmt([Write(0, data)], len(data)))
