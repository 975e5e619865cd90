"""An ordinary user: --no-mount works through fusermount3; a mount is refused with what to do."""

import json
import os
import pwd
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mounting import TESTS, ImageMaker
from support.raw_image import config_of

USER = f"hybrid-{os.getpid()}"
_NOT_NEEDED = (
    "mypy*",
    "pip",
    "pip-*",
    "ruff*",
    "hypothesis*",
    "cryptography*",
    "setuptools*",
    "pygments*",
)


class Account:
    """A user with a venv of /usr/bin/python3 that it can read, and a FUSE device it may open."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.uid = pwd.getpwnam(USER).pw_uid

    def run(
        self, *arguments: object, setup: str = "chmod 0666 /dev/fuse"
    ) -> subprocess.CompletedProcess[str]:
        # The node of this machine stays as it is: a private /dev hides it in this namespace.
        script = f"""
            d=$(mktemp -d) && mount -t tmpfs none $d && cp -a /dev/null /dev/fuse $d/ &&
            mount --move $d /dev && rmdir $d && chmod 0666 /dev/null && {setup} &&
            exec setpriv --reuid={USER} --regid={USER} --init-groups --reset-env "$@"
        """
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, arguments)],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def hybrid(self, *arguments: object, module: str = "support.mount_driver") -> list[str]:
        return [
            "env",
            f"PYTHONPATH={self.home}/tests",
            f"HYBRID_STATE_DIR={self.home}/state",
            f"{self.home}/venv/bin/python",
            "-m",
            module,
            *map(str, arguments),
        ]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    # pytest's own directories are closed to other users.
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    subprocess.run(["useradd", "--no-create-home", "--home-dir", home, USER], check=True)
    try:
        _make_venv(home)
        shutil.copytree(TESTS / "support", home / "tests" / "support")
        shutil.chown(home, USER, USER)
        yield Account(home)
    finally:
        subprocess.run(["userdel", USER], check=True, capture_output=True)
        shutil.rmtree(home)


def _make_venv(home: Path) -> None:
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", home / "venv"], check=True)
    (packages,) = (home / "venv/lib").glob("python3.*")
    # Only regular packages: an editable install points to places that the user may not read.
    shutil.copytree(
        sysconfig.get_paths()["purelib"],
        packages / "site-packages",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.pth", "*pycache*", *_NOT_NEEDED),
    )
    shutil.copytree(TESTS.parent / "hybrid", packages / "site-packages/hybrid", dirs_exist_ok=True)


def test_an_exposed_file(account: Account, images: ImageMaker) -> None:
    image = account.home / "image"
    shutil.copy(images.get("ext4"), image)
    image.chmod(0o644)
    script = """
        set -e
        record=$($MOUNT); file=$(echo "$record" | sed -n 's/.*"file": "\\(.*\\)",/\\1/p')
        cmp "$IMAGE" "$file" >&2
        $LIST
        exec 3<"$file"; if $UMOUNT; then echo "not busy" >&2; exit 1; fi; exec 3<&-
        $UMOUNT
    """
    words = {
        "MOUNT": account.hybrid("mount", image),
        "LIST": account.hybrid("list", "--json"),
        "UMOUNT": [*account.hybrid("umount"), "$(ls $STATE)"],
        "IMAGE": [str(image)],
        "STATE": [f"{account.home}/state"],
    }
    for name, command in words.items():
        script = script.replace(f"${name}", " ".join(command))
    script = script.replace("$STATE", f"{account.home}/state")
    done = account.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    (listed,) = json.loads(done.stdout)
    assert listed["state"] == "ready"
    assert listed["mountpoint"] is None
    assert "is in use by" in done.stderr
    assert list((account.home / "state").iterdir()) == []


def test_a_killed_server_is_cleaned_up(account: Account, images: ImageMaker) -> None:
    image = account.home / "image"
    shutil.copy(images.get("erofs"), image)
    image.chmod(0o644)
    mount, listing, umount = (
        " ".join(account.hybrid(*words))
        for words in (("mount", image), ("list", "--json"), ("umount",))
    )
    pid = "$(sed -n 's/.*\"pid\": \\([0-9]*\\),/\\1/p' " + f"{account.home}/state/*/state.json)"
    script = f"set -e; {mount} >&2; kill -9 {pid}; {listing}; {umount} $(ls {account.home}/state)"
    done = account.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["state"] == "dead"
    assert list((account.home / "state").iterdir()) == []


def test_a_writable_file(account: Account, images: ImageMaker) -> None:
    config = config_of(images.get("ext4"), account.home / "writable")
    uppers = account.home / ".local" / "share" / "hybrid" / "uppers"
    mount, again, umount = (
        " ".join(account.hybrid(*words, module="hybrid"))
        for words in (
            ("mount", "--rw", "--no-mount", "--mode", "fuse", config),
            ("mount", "--rw", "--no-mount", "--mode", "fuse", "--upper", "$(echo $U/*)", config),
            ("umount", '"$file"'),
        )
    )
    done = account.run(
        "sh", "-c",
        f"""set -e; U={uppers}
        file=$({mount}); echo hello | dd of="$file" conv=notrunc,fsync bs=1 seek=777; {umount}
        file=$({again}); dd if="$file" bs=1 skip=777 count=5; {umount}""",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello"
    (upper,) = uppers.iterdir()
    assert (upper.stat().st_uid, upper.stat().st_mode & 0o777) == (account.uid, 0o700)
    assert list((account.home / "state").iterdir()) == []


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done
    (line,) = done.stderr.splitlines()
    return line


def test_a_mount_says_why_it_needs_root_and_what_to_do(account: Account) -> None:
    line = one_line(account.run(*account.hybrid("mount", "x", account.home)), 9)
    assert "needs root" in line
    assert "sudo hybrid mount" in line
    assert "--no-mount" in line
    assert "fuse2fs" in line
    assert "losetup" not in line
    assert "udisksctl" not in line


def test_a_closed_fuse_device(account: Account) -> None:
    line = one_line(account.run(*account.hybrid("mount", "x"), setup="chmod 0600 /dev/fuse"), 9)
    assert "cannot open /dev/fuse: permission denied" in line


def test_a_missing_fusermount(account: Account) -> None:
    command = account.hybrid("mount", "x")
    line = one_line(account.run("env", "PATH=/nowhere", *_absolute(command)), 10)
    assert "fusermount3 is missing" in line


def _absolute(command: list[str]) -> list[str]:
    return ["/usr/bin/env", *command[1:]]


def test_mounts_of_root_are_not_ours(account: Account) -> None:
    line = one_line(account.run(*account.hybrid("umount", "abcd")), 4)
    assert "no mount has an id that starts with abcd" in line
    assert "sudo" in line
