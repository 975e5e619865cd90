"""Archives applied by system calls, to ext4, xfs and btrfs of the kernel."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from support.archives import CHAR, DIR, FIFO, LINK, SYMLINK, archive, member
from support.ext4_disks import needs_root
from support.kernel_trees import apply_layer, kernel_directory, kernel_tree, shown
from support.random_layers import LAYERS, Generator

from hybrid.build.kernelfs.tree import KernelTree
from hybrid.errors import FormatError, HybridError, StorageFullError, UnsupportedError

pytestmark = needs_root
FILE_SYSTEMS = ["ext4", "xfs", "btrfs"]
S = 10**9


@pytest.mark.parametrize("fs", FILE_SYSTEMS)
@pytest.mark.parametrize("seed", range(4))
def test_random_layers(seed: int, fs: str, tmp_path: Path) -> None:
    generator = Generator(seed)
    with kernel_directory(tmp_path, fs) as root:
        for _ in range(LAYERS):
            apply_layer(root, generator.layer())
            wanted, found = generator.model.tree(), shown(root)
            wanted[b""]["mtime"] = found[b""]["mtime"] = 0
            assert sorted(found) == sorted(wanted)
            for path in wanted:
                assert found[path] == wanted[path], path


def default_acl(root: Path, name: str = "") -> bytes | None:
    try:
        return os.getxattr(root / name, "system.posix_acl_default")
    except OSError:
        return None


@pytest.mark.parametrize("fs", FILE_SYSTEMS)
def test_nothing_is_inherited(fs: str, tmp_path: Path) -> None:
    """Neither default ACLs nor the group of a set-group-id directory; and the ACLs stay."""
    entries = ((1, 7, -1), (2, 7, 1000), (4, 5, -1), (16, 7, -1), (32, 5, -1))
    acl = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + mode.to_bytes(2, "little") + (who % 2**32).to_bytes(4, "little")
        for tag, mode, who in entries
    )
    own = {b"system.posix_acl_default": acl}
    below = archive(
        member(b"d/", kind=DIR, mode=0o2775, gid=50, mtime=5, xattrs=own),
        member(b"d/f", b"1", mode=0o640), member(b"d/sub/", kind=DIR, mode=0o700),
    )  # fmt: skip
    above = archive(
        member(b"d/g", b"2", mode=0o600), member(b"d/p", kind=FIFO, mode=0o622),
        member(b"d/other/", kind=DIR, mode=0o711), member(b"d/l", kind=SYMLINK, link=b"f"),
    )  # fmt: skip
    with kernel_directory(tmp_path, fs) as root:
        for layer in (below, above):
            apply_layer(root, layer)
            assert default_acl(root, "d") == acl
        tree = shown(root)
    modes = {b"f": 0o640, b"sub": 0o700, b"g": 0o600, b"p": 0o622, b"other": 0o711}
    for name, mode in modes.items():
        row = tree[b"d/" + name]
        assert (row["mode"], row["owner"], row["xattrs"]) == (mode, (0, 0), {}), name
    assert tree[b"d/l"]["owner"] == (0, 0)
    assert (tree[b"d"]["mode"], tree[b"d"]["mtime"]) == (0o2775, 5 * S)
    # Given anew, and taken away.
    with kernel_directory(tmp_path, fs) as root:
        apply_layer(root, below)
        again = member(b"d/", kind=DIR, mode=0o755, mtime=9, xattrs=own)
        apply_layer(root, archive(member(b"d/h"), again, member(b"d/i")))
        assert default_acl(root, "d") == acl
        apply_layer(root, archive(member(b"d/j"), member(b"d/", kind=DIR, mtime=10)))
        assert default_acl(root, "d") is None
        assert (root / "d").stat().st_mtime_ns == 10 * S


@pytest.mark.parametrize("fs", FILE_SYSTEMS)
def test_capabilities_outlive_new_owners(fs: str, tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    own = {b"security.capability": capability}
    first = archive(member(b"f", b"x", mode=0o4755, uid=1, xattrs=own))
    second = archive(member(b"g", kind=LINK, link=b"f", mode=0o6755, uid=2, mtime=3))
    tree = kernel_tree(tmp_path, first, second, fs=fs)
    row = tree[b"f"]
    assert row == tree[b"g"]
    assert (row["mode"], row["owner"], row["mtime"]) == (0o6755, (2, 0), 3 * S)
    assert row["xattrs"] == own


def test_deep_and_wide_trees(tmp_path: Path) -> None:
    """More directories than are kept open, deeper than names may be long; and all removed again."""
    deep = b"/".join([b"d" * 50] * 300)
    wide = [member(b"wide/%03d/f" % number, b"%d" % number, mtime=number) for number in range(400)]
    layer = archive(member(deep + b"/file", b"deep"), *wide, *wide[::-1])
    with kernel_directory(tmp_path) as root:
        apply_layer(root, layer)
        assert len(os.listdir(root / "wide")) == 400
        assert (root / "wide/399/f").read_bytes() == b"399"
        found = os.open(root, os.O_RDONLY)
        for name in deep.split(b"/"):
            above, found = found, os.open(name, os.O_RDONLY, dir_fd=found)
            os.close(above)
        assert os.listdir(found) == ["file"]
        os.close(found)
        apply_layer(root, archive(member(b".wh." + b"d" * 50), member(b".wh.wide")))
        assert sorted(os.listdir(root)) == ["lost+found"]


def refused(root: Path, kind: type[HybridError], match: str, *entries: bytes) -> None:
    with pytest.raises(kind, match=match) as caught:
        apply_layer(root, archive(*entries))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fs", FILE_SYSTEMS)
def test_what_cannot_be(fs: str, tmp_path: Path) -> None:
    with kernel_directory(tmp_path, fs) as root:
        refused(root, UnsupportedError, "layer.tar: n+: File name too long", member(b"n" * 256))
        refused(root, UnsupportedError, "device with the number 4096:0",
                member(b"c", kind=CHAR, device=(4096, 0)))  # fmt: skip
        refused(root, UnsupportedError, "without a target", member(b"s", kind=SYMLINK, link=b""))
        broken = {b"system.posix_acl_access": b"nonsense"}
        refused(root, FormatError, "invalid value of the ext", member(b"x", xattrs=broken))
        broken = {b"system.posix_acl_default": b"nonsense"}
        refused(root, FormatError, "invalid value", member(b"y/", kind=DIR, xattrs=broken))
        refused(root, FormatError, "leads out of the image", member(b"../up"))
        big = {b"user.x": bytes(100_000)}
        refused(root, UnsupportedError, "z: ", member(b"z", xattrs=big))
        refused(root, StorageFullError, "virtual disk of 0.3125 GiB is full",
                member(b"big", b"x" * (330 << 20)))  # fmt: skip


def test_attributes_that_do_not_fit_into_ext4(tmp_path: Path) -> None:
    with kernel_directory(tmp_path) as root:
        refused(root, UnsupportedError, "no room for the extended attribute user.x",
                member(b"x", xattrs={b"user.x": bytes(5000)}))  # fmt: skip


def test_a_link_to_what_can_have_no_attributes_of_users(tmp_path: Path) -> None:
    """They are dropped, as where the entry itself says what it is."""
    link = member(b"l", kind=LINK, link=b"p", mtime=4, xattrs={b"user.x": b"1", b"trusted.x": b"2"})
    tree = kernel_tree(tmp_path, archive(member(b"p", kind=FIFO, mtime=3), link))
    assert tree[b"p"] == tree[b"l"]
    assert (tree[b"p"]["mtime"], tree[b"p"]["xattrs"]) == (4 * S, {b"trusted.x": b"2"})


def test_labels_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SELinux gives each file a label, and refuses to take it away."""
    remove = os.removexattr

    def refuse(path: bytes, name: str, **options: bool) -> None:
        if name == "security.selinux":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        remove(path, name, **options)

    monkeypatch.setattr(os, "removexattr", refuse)
    label = {b"security.selinux": b"label"}
    below = archive(member(b"d/", kind=DIR, xattrs=label | {b"user.x": b"1"}))
    tree = kernel_tree(tmp_path, below, archive(member(b"d/", kind=DIR, mtime=5)))
    assert (tree[b"d"]["xattrs"], tree[b"d"]["mtime"]) == (label, 5 * S)


def test_links_of_the_layer_never_lead_out(tmp_path: Path) -> None:
    """Neither in the names of entries nor behind the back of the resolver."""
    outside = tmp_path / "outside"
    outside.mkdir()
    link = os.fsencode(outside)
    with kernel_directory(tmp_path) as root:
        up = b"../" * 9 + link
        apply_layer(root, archive(
            member(b"out", kind=SYMLINK, link=link), member(b"out/f", b"1"),
            member(b"up", kind=SYMLINK, link=up), member(b"up/g", b"2"),
            member(b"h", kind=SYMLINK, link=link + b"/made"), member(b"h", b"3"),
        ))  # fmt: skip
        assert os.listdir(outside) == []
        inside = root / str(outside).lstrip("/")
        assert sorted(os.listdir(inside)) == ["f", "g"]
        assert (root / "h").read_bytes() == b"3"
        # A name that was a directory when it was looked up is opened without following links.
        descriptor = os.open(root, os.O_RDONLY)
        tree = KernelTree(descriptor)
        try:
            (root / "d").mkdir()
            found = tree.lookup(2, b"d")
            assert found is not None
            (root / "d").rmdir()
            (root / "d").symlink_to(outside)
            with pytest.raises(Exception, match="Not a directory"):
                tree.put_file(found[0], b"f", 0o644, 0, 0, 0, 0, b"x")
        finally:
            tree.close()
            os.close(descriptor)
        assert os.listdir(outside) == []


def test_no_descriptors_stay_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with kernel_directory(tmp_path) as root:
        apply_layer(root, archive(*(member(b"d%d/f" % i, b"x") for i in range(200))))
        with pytest.raises(FormatError):
            apply_layer(root, archive(member(b"big", b"x" * (2 << 20)))[: 1 << 20])
    assert len(os.listdir("/proc/self/fd")) == before
    assert stat.S_ISDIR(os.stat(tmp_path).st_mode)
