"""tools/vm, but for the guest itself: what it is told, and how its output is taken.

That the guest works is shown by tools/test, which runs a part of the suite in it, and by the last
test here.
"""

from __future__ import annotations

import errno
import io
import itertools
import lzma
import os
import queue
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

_ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT / "tools/lib"))


from vm import cli  # noqa: E402
from vm.apt import archive_uri, image_package, source_text  # noqa: E402
from vm.errors import GuestLostError, UsageError, VmError  # noqa: E402
from vm.initrd import Entry, first_files, pack  # noqa: E402
from vm.kernel import Kernel, cache_directory, ready_kernel  # noqa: E402
from vm.modules import load_order  # noqa: E402
from vm.options import Options, parse_options  # noqa: E402
from vm.package import uncompressed_kernel, unpack, wanted  # noqa: E402
from vm.plan import Plan, command_script, kept_directories, passed_on  # noqa: E402
from vm.programs import run  # noqa: E402
from vm.qemu import PROGRAM, Machine, command_line  # noqa: E402
from vm.stream import Console, MarkedStream, Pump  # noqa: E402

_ENVIRONMENT = dict(os.environ)
"""The user's own: the kernel is in the cache of that home."""
_MARK = b"\x1e0123456789abcdef:"


# --- the command line ----------------------------------------------------------------------------


def test_options_have_defaults() -> None:
    assert parse_options(["ls -l"]) == Options("ls -l", timeout=600, memory=4096)


def test_all_options_are_taken(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("real")
    (tmp_path / "real").mkdir()
    arguments = ["--timeout", "2.5", "--memory", "512", "--out", str(link), "--out"]
    arguments += [str(tmp_path / "real"), "--env", "A", "--env", "B_2", "--scratch", "64"]
    arguments += ["--console", "log", "--no-modules", "true"]
    assert parse_options(arguments) == Options(
        command="true",
        timeout=2.5,
        memory=512,
        out=(tmp_path / "real",),
        env=("A", "B_2"),
        scratch=64,
        console=Path("log"),
        modules=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command"),
        (["  "], "no command"),
        (["ls", "-l"], "as one word"),
        (["ls", "a"], "as one word"),
        (["--bogus"], "unknown option: --bogus"),
        (["--time", "3", "ls"], "unknown option: --time|as one word"),
        (["--timeout", "0", "ls"], "not a number of seconds: 0"),
        (["--timeout", "nan", "ls"], "not a number of seconds: nan"),
        (["--timeout", "inf", "ls"], "not a number of seconds: inf"),
        (["--timeout", "1m", "ls"], "not a number of seconds: 1m"),
        (["--timeout"], "expected one argument"),
        (["--memory", "511", "ls"], "at least 512 MiB"),
        (["--memory", "4G", "ls"], "not a number of MiB: 4G"),
        (["--scratch", "0", "ls"], "not a number of MiB: 0"),
        (["--scratch", "99999999", "ls"], "not a number of MiB"),
        (["--out", "/no/such", "ls"], "no such directory: /no/such"),
        (["--out", "/etc/passwd", "ls"], "not a directory: /etc/passwd"),
        (["--out", "/etc/..", "ls"], "the whole machine"),
        (["--env", "A=b", "ls"], "not the name of a variable: A=b"),
    ],
)
def test_a_command_line_without_sense_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_options(arguments)


def test_a_refusal_is_one_line_and_has_its_code(capfd: pytest.CaptureFixture[str]) -> None:
    # In a process of its own, since it takes over the handling of signals.
    program = f"import sys; sys.path.insert(0, {str(_ROOT / 'tools/lib')!r}); "
    program += "from vm.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, "--out", "/no/such", "ls"], check=False)
    assert done.returncode == 2
    message = "vm: argument --out: no such directory: /no/such (tools/vm --help)\n"
    assert capfd.readouterr() == ("", message)


# --- what the guest is told ----------------------------------------------------------------------


def test_only_what_a_fresh_directory_would_hide_is_kept() -> None:
    wanted = ["/tmp/a b/hybrid", "/tmp/a b", "/srv/hybrid", "/tmp", "/dev/shm", "/dev/shm/x"]
    kept = kept_directories(map(Path, wanted))
    assert kept == (Path("/dev/shm/x"), Path("/tmp/a b"))
    assert kept_directories([Path("/var/tmp/x"), Path("/var/tmpx"), Path("/run/user/0")]) == (
        Path("/run/user/0"),
        Path("/var/tmp/x"),
    )


def _run_shell(script: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["sh", "-eu"], input=script, capture_output=True, check=False)


def test_the_settings_survive_a_shell() -> None:
    strange = Path('/tmp/it\'s "$HOME"\n`x`; \udce4')
    plan = Plan(
        modules=strange,
        kept=(strange, Path("/tmp/b")),
        shared=(strange,),
        mark=_MARK,
        scratch=True,
        load=False,
        limit=70,
    )
    script = (
        b"keep() { printf 'keep[%s][%s]' \"$@\"; }; share() { printf 'share[%s][%s]' \"$@\"; }\n"
    )
    script += plan.settings()
    script += b"keep_all; share_all; printf '%s' \"[$modules][$mark]$scratch$load$limit\""
    name = os.fsencode(strange)
    expected = b"keep[0][%s]keep[1][/tmp/b]share[out0][%s][%s][%s]1070" % (name, name, name, _MARK)
    assert _run_shell(script).stdout == expected


def test_nothing_kept_and_nothing_shared_is_valid_shell() -> None:
    plan = Plan(Path("/m"), (), (), _MARK, scratch=False, load=True, limit=1)
    done = _run_shell(plan.settings() + b"keep_all; share_all; echo $scratch$load")
    assert (done.returncode, done.stdout) == (0, b"01\n")


def test_the_command_gets_its_directory_and_no_other_environment(tmp_path: Path) -> None:
    place = tmp_path / "a 'b'"
    place.mkdir()
    command = "pwd; env | grep -c .; echo \"$A\" 'quoted'; exit 7"
    script = command_script(command, place, {"A": "x'y\nz", "PATH": os.environ["PATH"]})
    done = _run_shell(script)
    # A (two lines), PATH, PWD, SHLVL, _
    assert done.stdout.decode() == f"{place}\n6\nx'y\nz quoted\n"
    assert done.returncode == 7


def test_a_directory_that_is_not_there_is_told() -> None:
    done = _run_shell(command_script("echo no", Path("/no/such"), {}))
    assert (done.returncode != 0, done.stdout, b"/no/such" in done.stderr) == (True, b"", True)


def test_variables_are_passed_on_if_they_are_set() -> None:
    environment = {"PATH": "/bin", "HOME": "/root", "SECRET": "x", "A": ""}
    assert passed_on(environment, ["A", "B"]) == {"PATH": "/bin", "HOME": "/root", "A": ""}


# --- qemu ----------------------------------------------------------------------------------------


def _machine(**changes: object) -> Machine:
    values: dict[str, object] = {
        "kernel": Path("/k"),
        "initrd": "/proc/self/fd/9",
        "memory": 1024,
        "console": "/proc/self/fd/5",
        "ports": ("/proc/self/fd/3", "/proc/self/fd/4"),
        "shared": (),
        "scratch": "",
    }
    return Machine(**(values | changes))  # type: ignore[arg-type]


def test_the_machine_s_files_are_shared_read_only() -> None:
    words = command_line(_machine())
    shares = [after for word, after in itertools.pairwise(words) if word == "-virtfs"]
    assert len(shares) == 1
    assert "path=/,mount_tag=root," in shares[0]
    assert shares[0].endswith(",readonly=on")
    assert "-drive" not in words


def test_a_directory_s_commas_do_not_become_settings() -> None:
    words = command_line(_machine(shared=(Path("/a"), Path("/b,readonly=on")), scratch="/f"))
    assert "local,path=/a,mount_tag=out0,security_model=none,multidevs=remap" in words
    assert any(word.startswith("local,path=/b,,readonly=on,mount_tag=out1,") for word in words)
    assert words[words.index("-drive") + 1].startswith("file=/f,format=raw,")


def test_a_kernel_that_is_lost_ends_the_guest() -> None:
    words = command_line(_machine())
    kernel_arguments = words[words.index("-append") + 1].split()
    assert {"panic=-1", "oops=panic", "console=ttyS0"} <= set(kernel_arguments)
    assert "-no-reboot" in words


# --- the first files -----------------------------------------------------------------------------


def test_the_archive_is_read_by_cpio_s_own_rules(tmp_path: Path) -> None:
    entries = [
        Entry("d", stat.S_IFDIR | 0o755),
        Entry("d/odd", stat.S_IFREG | 0o640, b"12345"),
        Entry("d/empty", stat.S_IFREG | 0o644),
        Entry("link", stat.S_IFLNK | 0o777, b"d/odd"),
    ]
    archive = pack(entries)
    busybox = ["/bin/busybox", "cpio", "-i"]
    subprocess.run(busybox, input=archive, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "d/odd").read_bytes() == b"12345"
    assert stat.S_IMODE((tmp_path / "d/odd").stat().st_mode) == 0o640
    assert (tmp_path / "d/empty").read_bytes() == b""
    assert (tmp_path / "link").readlink() == Path("d/odd")
    assert len(archive) % 4 == 0


def test_modules_are_named_in_the_order_to_load_them(tmp_path: Path) -> None:
    modules = [tmp_path / "z.ko", tmp_path / "a.ko"]
    for module in modules:
        module.write_bytes(module.name.encode())
    files = {entry.name: entry for entry in first_files(modules, b"settings", b"command")}
    names = [name for name in files if name.startswith("modules/")]
    assert sorted(names) == ["modules/00-z.ko", "modules/01-a.ko"]
    assert files["modules/01-a.ko"].data == b"a.ko"
    assert files["settings.sh"].data == b"settings"
    assert files["init"].mode == stat.S_IFREG | 0o755
    assert files["bin/sh"].data == b"busybox"


def _write_modules(directory: Path) -> None:
    (directory / "modules.builtin").write_text("kernel/drivers/virtio/virtio-pci.ko\n")
    (directory / "modules.dep").write_text(
        "kernel/a.ko:\n"
        "kernel/b-b.ko: kernel/a.ko\n"
        "kernel/c.ko: kernel/b-b.ko kernel/a.ko\n"
        "kernel/d.ko: kernel/a.ko\n"
    )


def test_a_module_comes_after_all_that_it_needs(tmp_path: Path) -> None:
    _write_modules(tmp_path)
    order = load_order(tmp_path, ["virtio_pci", "d", "c", "b_b"])
    assert order == [tmp_path / f"kernel/{name}.ko" for name in ("a", "d", "b-b", "c")]


def test_a_module_that_the_kernel_lacks_is_told(tmp_path: Path) -> None:
    _write_modules(tmp_path)
    with pytest.raises(VmError, match="has no module e"):
        load_order(tmp_path, ["a", "e"])


# --- the kernel ----------------------------------------------------------------------------------


def test_the_archive_of_this_release_is_taken() -> None:
    targets = "sec bookworm-security\nmain bookworm\nupdates bookworm-updates\nmain bookworm\n"
    assert archive_uri(targets, "bookworm") == "main"
    with pytest.raises(VmError, match="apt has no source for trixie"):
        archive_uri(targets, "trixie")
    with pytest.raises(VmError, match="apt has no source for the release of this machine"):
        archive_uri("", "")


def test_the_kernel_is_what_the_package_that_follows_it_names() -> None:
    text = "linux-image-amd64\n  Depends: linux-image-6.12.9-amd64\n  Suggests: linux-image-x\n"
    assert image_package(text) == "linux-image-6.12.9-amd64"
    with pytest.raises(VmError, match="names no kernel"):
        image_package("linux-image-amd64\n")


def test_the_source_is_signed_by_debian() -> None:
    lines = source_text("uri", "bookworm-backports").splitlines()
    assert "Suites: bookworm-backports" in lines
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in lines
    assert not any("trusted" in line.lower() for line in lines)


def test_the_cache_is_where_xdg_says(tmp_path: Path) -> None:
    assert cache_directory({"XDG_CACHE_HOME": "/c"}) == Path("/c/hybrid-vm")
    default = Path.home() / ".cache/hybrid-vm"
    assert cache_directory({}) == cache_directory({"XDG_CACHE_HOME": "relative"}) == default


def test_a_kernel_with_missing_parts_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "kernel-1/lib/modules/6.1").mkdir(parents=True)
    with pytest.raises(VmError, match=r"remove .*kernel-1"):
        ready_kernel(tmp_path)
    (tmp_path / "kernel-1/vmlinux").touch()
    kernel = ready_kernel(tmp_path)
    assert kernel.modules == tmp_path / "kernel-1/lib/modules/6.1"


def _bz_image(payload: bytes, size: int) -> bytes:
    """A bzImage with two sectors of set-up and the payload 16 bytes behind them."""
    head = bytearray(1024 + 16)
    head[0x1F1] = 1
    head[0x202:0x208] = b"HdrS\x0f\x02"
    struct.pack_into("<II", head, 0x248, 16, len(payload) + 4)
    return bytes(head) + payload + struct.pack("<I", size) + b"what follows"


_ELF = b"\x7fELF" + bytes(range(256)) * 20


def test_the_kernel_is_expanded() -> None:
    xz = lzma.compress(_ELF, check=lzma.CHECK_CRC32)
    zstd = subprocess.run(["zstd", "-q", "-c"], input=_ELF, capture_output=True, check=True).stdout
    assert uncompressed_kernel(_bz_image(xz, len(_ELF))) == _ELF
    assert uncompressed_kernel(_bz_image(zstd, len(_ELF))) == _ELF


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"MZ" + bytes(2000), "not a bzImage"),
        (b"", "not a bzImage"),
        (_bz_image(b"\x02!L\x18lz4", 9), "unknown way .02214c18"),
        (_bz_image(lzma.compress(b"no elf"), 6), "does not hold what it should"),
        (_bz_image(lzma.compress(_ELF), 6), "does not hold what it should"),
        (_bz_image(b"\xfd7zXZ damaged", 6), "cannot be expanded"),
        (_bz_image(b"\x28\xb5\x2f\xfd damaged", 6), "zstd failed"),
    ],
)
def test_a_kernel_that_cannot_be_expanded_is_told(image: bytes, message: str) -> None:
    with pytest.raises(VmError, match=message):
        uncompressed_kernel(image)


@pytest.mark.parametrize(
    ("name", "is_wanted"),
    [
        ("lib/modules/6.12/kernel/drivers/target/target_core_user.ko.xz", True),
        ("lib/modules/6.12/kernel/net/9p/9pnet.ko", True),
        ("lib/modules/6.12/modules.order", True),
        ("lib/modules/6.12/kernel/drivers/net/tun.ko.xz", False),
        ("lib/modules/6.12/kernel/sound/soundcore.ko.xz", False),
        ("boot/config-6.12", False),
        ("share/doc/x", False),
    ],
)
def test_some_files_of_the_package_are_wanted(name: str, is_wanted: bool) -> None:
    assert wanted(name) == is_wanted


def _package(directory: Path, files: dict[str, bytes]) -> Path:
    """A Debian package with these files (man: deb(5))."""
    members = {"debian-binary": b"2.0\n", "control.tar": _tar({"./control": b"Package: k\n"})}
    members["data.tar"] = _tar(files)
    path = directory / "k.deb"
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
            file.write(data + bytes(len(data) % 2))
    return path


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_modules_of_a_package_are_expanded(tmp_path: Path) -> None:
    files = {
        "./boot/vmlinuz-6": b"kernel",
        "./usr/lib/modules/6/kernel/fs/a.ko.xz": lzma.compress(b"module a"),
        "./lib/modules/6/kernel/fs/b.ko": b"module b",
        "./lib/modules/6/kernel/sound/c.ko": b"module c",
    }
    assert unpack(_package(tmp_path, files), tmp_path / "made") == b"kernel"
    made = tmp_path / "made/lib/modules/6/kernel"
    assert (made / "fs/a.ko").read_bytes() == b"module a"
    assert (made / "fs/b.ko").read_bytes() == b"module b"
    assert not (made / "sound").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"./usr/share/doc/k": b""}, "holds no kernel"),
        ({"./lib/modules/6/kernel/a.ko.xz": b"damaged"}, "package is damaged"),
    ],
)
def test_a_package_that_is_no_kernel_is_told(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(VmError, match=message):
        unpack(_package(tmp_path, files), tmp_path / "made")


def test_a_file_that_is_no_package_is_told(tmp_path: Path) -> None:
    path = tmp_path / "k.deb"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(VmError, match=r"k\.deb holds no kernel|package is damaged"):
        unpack(path, tmp_path / "made")


def test_a_program_s_failure_is_its_last_complaint() -> None:
    with pytest.raises(VmError, match=r"^sh failed: the reason$"):
        run(["sh", "-c", "echo first >&2; echo 'E: the reason' >&2; exit 3"], 10)
    with pytest.raises(VmError, match=r"^sh failed: exit code 3$"):
        run(["sh", "-c", "exit 3"], 10)
    with pytest.raises(VmError, match=r"no-such-program is not installed: run tools/setup"):
        run(["no-such-program"], 10)
    with pytest.raises(VmError, match=r"sleep did not end in 0 s"):
        run(["sleep", "60"], 0.01)
    assert run(["cat"], 10, data=b"\0x") == b"\0x"


# --- its output ----------------------------------------------------------------------------------


@given(
    output=st.binary(max_size=60)
    | st.lists(st.sampled_from([_MARK[:1], _MARK[:5], b"a"])).map(b"".join),
    cuts=st.lists(st.integers(0, 100)),
    status=st.integers(0, 255),
)
def test_a_marked_stream_gives_the_output_and_the_status(
    output: bytes, cuts: list[int], status: int
) -> None:
    stream = MarkedStream(_MARK)
    whole = output + _MARK + b"%d\n" % status + b"of a process left behind"
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    passed = b"".join(stream.feed(whole[a:b]) for a, b in itertools.pairwise(edges))
    assert (passed + stream.rest(), stream.status) == (output, status)


@given(output=st.binary(max_size=60), cut=st.integers(0, 60))
def test_a_stream_that_breaks_off_loses_nothing(output: bytes, cut: int) -> None:
    stream = MarkedStream(_MARK)
    passed = stream.feed(output[:cut]) + stream.feed(output[cut:]) + stream.feed(_MARK[:-1])
    assert (passed + stream.rest(), stream.status) == (output + _MARK[:-1], None)


def test_output_is_passed_on_at_once() -> None:
    stream = MarkedStream(_MARK)
    assert stream.feed(b"no end of line") == b"no end of line"
    assert stream.feed(b"perhaps" + _MARK[:3]) == b"perhaps"
    assert stream.feed(b"not") == _MARK[:3] + b"not"


def _pumped(data: bytes, target: int) -> Pump:
    source, writer = os.pipe()
    ended: queue.SimpleQueue[Pump] = queue.SimpleQueue()
    pump = Pump(source, target, _MARK, ended)
    pump.start()
    with open(writer, "wb") as file:
        file.write(data)
    assert ended.get(timeout=10) is pump
    pump.join(10)
    return pump


def test_a_pump_copies_a_large_stream_to_its_mark(tmp_path: Path) -> None:
    output = os.urandom(3_000_000)
    with (tmp_path / "out").open("wb") as file:
        pump = _pumped(output + _MARK + b"0\n", file.fileno())
    assert (pump.status, pump.error) == (0, None)
    assert (tmp_path / "out").read_bytes() == output


def test_a_pump_tells_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        pump = _pumped(b"x" + _MARK + b"0\n", writer)
    finally:
        os.close(writer)
    assert isinstance(pump.error, BrokenPipeError)


def test_a_pump_tells_that_the_disk_is_full() -> None:
    with open("/dev/full", "wb") as full:
        pump = _pumped(b"x" + _MARK + b"0\n", full.fileno())
    assert pump.error is not None
    assert pump.error.errno == errno.ENOSPC


def test_the_console_keeps_its_last_lines_and_writes_all(tmp_path: Path) -> None:
    source, writer = os.pipe()
    path = tmp_path / "console"
    text = b"".join(b"line %d\r\n" % number for number in range(100)) + b"\n\x1b[1mred\xff"
    with path.open("wb", buffering=0) as file:
        console = Console(source, file)
        console.start()
        with open(writer, "wb") as guest:
            guest.write(text)
        console.join(10)
    assert path.read_bytes() == text
    tail = console.tail()
    assert tail[-1] == " [1mred\N{REPLACEMENT CHARACTER}"
    assert tail[-2] == "line 99"
    assert len(tail) <= Console.LINES + 1


@pytest.mark.parametrize(("lost", "code"), [(0, 3), (1, 3), (2, 125)])
def test_a_guest_that_is_lost_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], lost: int, code: int
) -> None:
    started = []

    def run_guest(guest: object) -> int:
        started.append(guest)
        if len(started) <= lost:
            raise GuestLostError("it ended", ["its last words"])
        return 3

    kernel = Kernel(Path("image"), Path("modules/6.12"))
    monkeypatch.setattr(cli, "run_guest", run_guest)
    monkeypatch.setattr(cli, "ready_kernel", lambda cache: kernel)
    monkeypatch.setattr(cli, "_initrd", lambda *arguments: b"")
    monkeypatch.setattr(cli, "_end_on_signals", lambda: None)
    assert cli.main(["true"]) == code
    assert capfd.readouterr().err.count("its last words") == lost
    assert len(started) == min(2, lost + 1)


def test_a_guest_that_has_spoken_is_not_lost() -> None:
    assert _pumped(b"", 1).is_silent
    with open(os.devnull, "wb") as nothing:
        assert not _pumped(b"x", nothing.fileno()).is_silent


# --- the guest -----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="tools/setup has not been run")
def test_a_guest_runs_a_command(tmp_path: Path) -> None:
    """Output as it comes, exit code, fresh and shared directories, nothing else that survives."""
    shared = tmp_path / "a, b"
    shared.mkdir()
    (tmp_path / "unseen").touch()
    place = shlex.quote(str(shared))
    command = (
        f"echo started; until [ -e {place}/go ]; do sleep 0.1; done; echo seen >{place}/file;"
        f" ls {place}/..; ls -d /sys/kernel/config/target; touch thrown-away; pwd >&2; exit 7"
    )
    process = subprocess.Popen(
        [_ROOT / "tools/vm", "--timeout", "120", "--out", shared, command],
        cwd=_ROOT / "tests",
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        started = process.stdout.readline()
        assert started == b"started\n", process.stderr.read().decode()
        (shared / "go").touch()
        assert process.stdout.read() == b"a, b\n/sys/kernel/config/target\n"
        # What tools/setup says may come first.
        assert process.stderr.read().splitlines()[-1:] == [bytes(_ROOT / "tests")]
    assert process.returncode == 7
    assert (shared / "file").read_text() == "seen\n"
    assert not (_ROOT / "tests/thrown-away").exists()
