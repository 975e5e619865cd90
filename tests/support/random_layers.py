"""Archives of random entries of all kinds over few names, and the tree that is to come of them."""

from __future__ import annotations

import random

from support.archives import BLOCK_DEVICE, CHAR, DIR, FIFO, FILE, LINK, SYMLINK, archive, member
from support.tree_model import Item, Model, RefusedError

NAMES = [b"a", b"b", b"c", b"lib", b"usr", b"\xff\xfename", b"long" * 60, "ümlaut".encode()]
TARGETS = [b"usr", b"/usr/lib", b"../a", b"../../..", b"nowhere", b"b/../c", b".", b"t/" * 40]
LAYERS, ENTRIES = 4, 60


class Generator:
    """Layers of entries of all kinds over few names, so that they meet often."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.model = Model()

    def layer(self) -> bytes:
        self.model.begin_layer()
        kept = []
        for _ in range(ENTRIES):
            item = self.item()
            try:
                self.model.apply(item)
            except RefusedError:
                continue
            kept.append(written(item))
        return archive(*kept)

    def path(self, deepest: int = 4) -> bytes:
        return b"/".join(self.random.choices(NAMES, k=self.random.randint(1, deepest)))

    def item(self) -> Item:
        choose = self.random
        roll = choose.random()
        name = self.path()
        if roll < 0.08:
            head, slash, last = name.rpartition(b"/")
            return Item(head + slash + b".wh." + last, FILE)
        if roll < 0.11:
            return Item(self.path(3) + b"/.wh..wh..opq", FILE)
        kinds = [DIR, FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, FIFO]
        kind = choose.choices(kinds, [30, 35, 12, 10, 2, 2, 2])[0]
        item = Item(
            name, kind, mode=choose.randrange(0o10000),
            mtime=choose.randint(-(2**31), 2**33) * 10**9,
            owner=(choose.choice([0, 1000, 2**32 - 2]), choose.choice([0, 70_000])),
        )  # fmt: skip
        item.mtime += choose.choice([0, 1, 999_999_999])
        if kind == FILE:
            item.content = self.content()
        elif kind in (SYMLINK, LINK):
            item.link = choose.choice(TARGETS) if kind == SYMLINK else self.path()
        elif kind in (CHAR, BLOCK_DEVICE):
            item.device = (choose.randrange(512), choose.randrange(1 << 18))
        if kind in (FILE, DIR) and choose.random() < 0.2:
            item.xattrs[b"user.x"] = choose.randbytes(choose.choice([0, 5, 40, 1000]))
            item.xattrs[b"trusted.\xff"] = choose.randbytes(7)
        return item

    def content(self) -> bytes:
        choose = self.random
        size = choose.choice([0, 1, 511, 4095, 4096, 4097, 70_000, choose.randrange(300_000)])
        data = bytearray(choose.randbytes(size))
        for _ in range(choose.randrange(3)):
            start = choose.randrange(size + 1)
            data[start : start + 100_000] = bytes(len(data[start : start + 100_000]))
        return bytes(data)


def written(item: Item) -> bytes:
    seconds, fraction = divmod(item.mtime, 10**9)
    # -1.25 stands for -2 s and 750,000,000 ns.
    if seconds < 0 and fraction:
        text = b"-%d.%09d" % (-seconds - 1, 10**9 - fraction)
    else:
        text = b"%d.%09d" % (seconds, fraction)
    return member(
        item.name, item.content, item.kind, mode=item.mode, uid=item.owner[0], gid=item.owner[1],
        link=item.link, device=item.device, xattrs=item.xattrs, records={b"mtime": text},
    )  # fmt: skip
