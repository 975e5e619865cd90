"""How a mount starts, and how each failure on the way leaves nothing behind."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.mounting import ImageMaker, MountBench, poll_until

from hybrid.mount.processes import process_state


def test_no_mount_exposes_the_file(bench: MountBench, images: ImageMaker) -> None:
    image = images.get("erofs")
    record = bench.mount(image)
    assert Path(record["file"]).read_bytes() == image.read_bytes()
    assert record["mountpoint"] is None
    assert record["loop"] is None
    assert record["fstype"] == "erofs"
    (listed,) = bench.list()
    assert listed == {**record, "stats": listed["stats"]}
    assert listed["stats"]["bytes_total"] == image.stat().st_size
    assert listed["stats"]["bytes_fetched"] >= image.stat().st_size
    bench.succeed("umount", record["file"])
    assert bench.leftovers() == []


def test_an_exposed_file_in_use_is_busy(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("erofs"))
    with Path(record["file"]).open("rb"):
        assert f"(pid {os.getpid()})" in bench.fail("umount", record["id"], code=11)
    bench.succeed("umount", record["id"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_exposed_file(
    bench: MountBench, images: ImageMaker, number: signal.Signals
) -> None:
    record = bench.mount(images.get("erofs"))
    os.kill(record["pid"], number)
    bench.assert_clean()


def test_a_hangup_ends_nothing(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("erofs"))
    os.kill(record["pid"], signal.SIGHUP)
    assert bench.state_of(record) == "ready"
    bench.succeed("umount", record["id"])


def test_the_server_keeps_nothing_of_its_parent(bench: MountBench, images: ImageMaker) -> None:
    reader, writer = os.pipe()
    done = subprocess.run(
        bench.command("mount", images.get("erofs")),
        env=bench.environment,
        cwd=bench.directory,
        stdout=subprocess.PIPE,
        pass_fds=[writer],
        text=True,
        check=True,
        timeout=20,
    )
    os.close(writer)
    assert os.read(reader, 1) == b""  # the end: the server has not kept the pipe
    os.close(reader)
    process = Path("/proc") / str(json.loads(done.stdout)["pid"])
    assert (process / "cwd").readlink() == Path("/")
    assert os.getsid(int(process.name)) == int(process.name)
    bench.succeed("umount", json.loads(done.stdout)["id"])


def test_records_and_logs_are_private(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("erofs"))
    directory = bench.state / record["id"]
    assert {path.stat().st_mode & 0o077 for path in (bench.state, directory)} == {0}
    for name in ("state.json", "control", "log"):
        assert (directory / name).stat().st_mode & 0o177 == 0, name
    bench.succeed("umount", record["id"])


def test_tcmu_is_refused_and_auto_says_why(bench: MountBench, images: ImageMaker) -> None:
    line = bench.fail("mount", images.get("ext4"), bench.mountpoint, "--mode", "tcmu", code=10)
    assert "target_core_user" in line
    assert bench.leftovers() == []
    done = bench.run("-v", "mount", images.get("ext4"), bench.mountpoint)
    record = json.loads(done.stdout)
    assert record["mode"] == "fuse"
    assert "TCMU" in record["mode_reason"]
    assert record["mode_reason"] in done.stderr
    bench.succeed("umount", bench.mountpoint)


class TestMountPoints:
    def test_missing(self, bench: MountBench, images: ImageMaker) -> None:
        line = bench.fail("mount", images.get("ext4"), "nowhere", code=12)
        assert "nowhere does not exist" in line

    def test_no_directory(self, bench: MountBench, images: ImageMaker) -> None:
        (bench.directory / "file").touch()
        line = bench.fail("mount", images.get("ext4"), "file", code=12)
        assert "not a directory" in line
        bench.fail("mount", images.get("ext4"), "file/below", code=12)

    def test_mounted_by_us(self, bench: MountBench, images: ImageMaker) -> None:
        record = bench.mount(images.get("ext4"), bench.mountpoint)
        line = bench.fail("mount", images.get("ext4"), "mnt", code=11)
        assert record["id"] in line
        assert "hybrid umount" in line
        os.kill(record["pid"], signal.SIGSTOP)  # and nothing of it is touched to find out
        bench.fail("mount", images.get("ext4"), "mnt", code=11)
        bench.succeed("umount", "mnt")

    def test_mounted_by_others(self, bench: MountBench, images: ImageMaker) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "none", bench.mountpoint], check=True)
        line = bench.fail("mount", images.get("ext4"), "mnt", code=11)
        assert "tmpfs" in line
        subprocess.run(["umount", bench.mountpoint], check=True)

    def test_reached_through_a_link(self, bench: MountBench, images: ImageMaker) -> None:
        (bench.directory / "alias").symlink_to("mnt")
        record = bench.mount(images.get("ext4"), "alias")
        assert record["mountpoint"] == str(bench.mountpoint)
        bench.fail("mount", images.get("ext4"), "alias", code=11)
        bench.succeed("umount", "alias")


class TestFailures:
    def test_an_error_of_the_server_is_the_error_of_the_command(
        self, bench: MountBench, images: ImageMaker
    ) -> None:
        line = bench.fail("mount", images.get("ext4"), "mnt", "--open", "fail", code=7)
        assert line == "hybrid: layer 2 is damaged (fetch it again)"
        assert bench.leftovers() == []

    def test_a_killed_server(self, bench: MountBench, images: ImageMaker) -> None:
        line = bench.fail("mount", images.get("ext4"), "mnt", "--open", "die", code=10)
        assert "killed by SIGKILL" in line
        assert bench.leftovers() == []

    def test_a_bug_in_the_server_keeps_its_log(self, bench: MountBench, images: ImageMaker) -> None:
        line = bench.fail("mount", images.get("ext4"), "mnt", "--open", "bug", code=70)
        assert "KeyError: 'a bug while opening'" in line
        (log,) = bench.state.iterdir()
        assert str(log) in line
        assert "Traceback" in log.read_text()
        log.unlink()
        assert bench.leftovers() == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_an_interrupted_start_is_undone(
        self, bench: MountBench, images: ImageMaker, number: signal.Signals
    ) -> None:
        with self._starting(bench, images, "--open", "hang") as process:
            poll_until(lambda: [item["state"] for item in bench.list()] == ["starting"], "start")
            process.send_signal(number)
            process.communicate(timeout=10)
        bench.assert_clean()
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)

    def test_an_interrupt_while_the_kernel_mounts_is_undone(
        self, bench: MountBench, images: ImageMaker
    ) -> None:
        """mount(2) waits for a read that never ends; killing the server lets it go."""
        # The detection reads the head; the group descriptors behind it hang.
        hang = f"131072-{24 << 20}"
        with self._starting(bench, images, "--hang-at", hang) as process:
            poll_until(lambda: process_state(process.pid) == "D", "mount(2)")
            (record,) = bench.list()
            process.terminate()
            os.kill(record["pid"], signal.SIGKILL)
            process.communicate(timeout=10)
        assert process.returncode in (7, 130)
        bench.assert_clean()

    @staticmethod
    def _starting(bench: MountBench, images: ImageMaker, *options: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            bench.command("mount", images.get("ext4"), bench.mountpoint, *options),
            env=bench.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_a_state_directory_of_somebody_else(
        self, bench: MountBench, images: ImageMaker
    ) -> None:
        bench.state.mkdir(mode=0o755)
        line = bench.fail("mount", images.get("ext4"), "mnt", code=9)
        assert "has mode 0755" in line
        bench.state.chmod(0o700)
        os.chown(bench.state, 12345, 12345)
        assert "belongs to uid 12345" in bench.fail("list", code=9)
        bench.state.rmdir()
        bench.state.symlink_to(bench.directory)
        assert "is no directory" in bench.fail("list", code=9)
        bench.state.unlink()


def test_list_without_mounts(bench: MountBench) -> None:
    assert bench.list() == []
    assert bench.succeed("list").startswith("ID")


def test_a_damaged_record_is_listed_and_can_be_removed(
    bench: MountBench, images: ImageMaker
) -> None:
    record = bench.mount(images.get("erofs"))
    (bench.state / record["id"] / "state.json").write_text("{ half")
    (listed,) = bench.list()
    assert (listed["id"], listed["state"]) == (record["id"], "dead")
    bench.succeed("umount", record["id"])
    bench.assert_clean()


def test_list_answers_while_a_server_is_stopped(bench: MountBench, images: ImageMaker) -> None:
    stopped = bench.mount(images.get("ext4"), bench.mountpoint)
    running = bench.mount(images.get("erofs"))
    os.kill(stopped["pid"], signal.SIGSTOP)
    first, second = bench.list()
    assert (first["state"], second["state"]) == ("stopped", "ready")
    assert "stats" not in first
    assert second["stats"]["bytes_total"] > 0
    for record in (stopped, running):
        bench.succeed("umount", record["id"])
    assert bench.leftovers() == []
