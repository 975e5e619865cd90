"""tools/bench --convert: an image of six layers, from end to end, against `tar x` and `lz4 -1`.

The image has 300 MB of this machine's files, once as plain tars and once as gzip. The command
converts it, in a process of its own, from one OCI layout to another: with one thread on one core,
and with two on two. In the same rounds GNU tar unpacks the same layers into the kernel's ext4 on a
loop device, and then lz4 compresses that disk: what one would do by hand, as root, without digests
and without layers. Everything lies in memory, so that no disk and no network is measured.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench.aims import Aim, aim_rows

_TREES = ("/usr/lib/python3.11", "/usr/lib/gcc", "/usr/include", "/usr/share/perl", "/usr/bin",
          "/usr/lib")  # fmt: skip
_LAYERS = 6
_LIMIT = 300 * 10**6
_DISK = 1 << 30
_KINDS = ("tar", "gzip")
_WORKS = ("decompress", "apply", "compress", "digest")
_AIM_RATE, _AIM_SPEEDUP, _AIM_PEAK = 100e6, 1.6, 300e6


@dataclass(frozen=True)
class Taken:
    """One run: seconds, seconds of processors, largest resident memory (bytes), and shares."""

    seconds: float
    cpu: float
    peak: int = 0
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Medians of one variant. Rates in bytes of plain tar a second; shares of processor time."""

    what: str
    kind: str
    threads: int
    rate: float
    cpu_rate: float
    spread: float
    """Half the distance between fastest and slowest, as a share of the median."""
    peak: int
    shares: dict[str, float]


def show_converting(rounds: int, as_json: bool) -> None:
    """Measure and print."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="hybrid-bench-", dir=memory if memory.is_dir() else None
    ) as name:
        rows = measure_converting(Path(name), rounds)
    print(
        json.dumps([asdict(row) for row in rows], indent=2) if as_json else converting_table(rows)
    )


def measure_converting(directory: Path, rounds: int) -> list[Row]:
    """All variants, which take turns in each round."""
    archives = make_archives(directory)
    size = sum(path.stat().st_size for path in archives)
    works: dict[tuple[str, str, int], Callable[[], Taken]] = {}
    for kind in _KINDS:
        blobs = [packed(path, kind) for path in archives]
        layout = make_layout(directory / f"source-{kind}", archives, blobs, kind)
        for threads in (1, 2):
            works["hybrid convert", kind, threads] = converter(directory, layout, threads)
        works["tar x + lz4 -1", kind, 1] = by_hand(directory, blobs)
    taken: dict[tuple[str, str, int], list[Taken]] = {key: [] for key in works}
    for _ in range(rounds):
        for key, work in works.items():
            taken[key].append(work())
    return [row_of(key, found, size) for key, found in taken.items()]


def row_of(key: tuple[str, str, int], found: list[Taken], size: int) -> Row:
    seconds = [one.seconds for one in found]
    middle, cpu = median(seconds), median(one.cpu for one in found)
    shares = {
        work: median(one.shares.get(work, 0.0) for one in found) / cpu
        for work in _WORKS
        if found[0].shares
    }
    spread = (max(seconds) - min(seconds)) / 2 / middle
    peak = max(one.peak for one in found)
    return Row(*key, size / middle, size / cpu, spread, peak, shares)


def converting_table(rows: list[Row]) -> str:
    """One line for each variant, and the aims."""
    lines = [
        f"{_LAYERS} layers of {_LIMIT // 10**6} MB together; MB: 10^6 bytes of plain tar;"
        " +- is the spread of the rounds",
        "",
        f"{'what':16}{'source':>7}{'cores':>7}{'rate':>11}{'+-':>6}{'per CPU s':>12}{'peak':>9}"
        f"   {'  '.join(_WORKS)}  other",
    ]
    for row in rows:
        shares = [row.shares.get(work, 0.0) for work in _WORKS]
        parts = [f"{share:{len(work)}.0%}" for share, work in zip(shares, _WORKS, strict=True)]
        parts.append(f"{1 - sum(shares):5.0%}")
        lines.append(
            f"{row.what:16}{row.kind:>7}{row.threads:7}{row.rate / 1e6:6.0f} MB/s{row.spread:6.0%}"
            f"{row.cpu_rate / 1e6:7.0f} MB/s"
            + (f"{row.peak >> 20:5} MiB   {'  '.join(parts)}" if row.shares else f"{'-':>9}")
        )
    return "\n".join([*lines, "", *aim_rows(aims(rows))])


def aims(rows: list[Row]) -> list[Aim]:
    found: dict[tuple[str, int], Row] = {(row.kind, row.threads): row for row in rows if row.shares}
    result = []
    for kind in _KINDS:
        one, two = found[kind, 1], found[kind, 2]
        result += [
            Aim(f"{kind}, one core", one.rate / 1e6, _AIM_RATE / 1e6, "MB/s"),
            Aim(f"{kind}, two cores, times one", two.rate / one.rate, _AIM_SPEEDUP, "times"),
        ]
    peak = max(row.peak for row in rows)
    result.append(Aim("peak memory", peak / 1e6, _AIM_PEAK / 1e6, "MB", at_most=True))
    return result


# --- what is measured


def converter(directory: Path, layout: Path, threads: int) -> Callable[[], Taken]:
    def work() -> Taken:
        with tempfile.TemporaryDirectory(dir=directory) as name:
            environment = os.environ | {"TMPDIR": name, "XDG_CACHE_HOME": name, "HOME": name}
            # Nothing of an earlier run is to be used.
            settings = Path(name) / "hybrid.json"
            place = {"cacheType": "file", "cacheDir": name}
            settings.write_text(json.dumps({"cacheConfig": place}))
            environment["HYBRID_CONFIG"] = str(settings)
            command = [
                sys.executable, "-m", "bench.one_command", "convert", "--json", "--threads",
                str(threads), f"oci:{layout}:v1", f"oci:{name}/target:v1",
            ]  # fmt: skip
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            started = time.perf_counter()
            done = subprocess.run(
                [*_on_cores(threads), *command], env=environment, check=True, text=True,
                capture_output=True,
            )  # fmt: skip
            seconds = time.perf_counter() - started
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            shares = json.loads(done.stdout)["cpu_seconds"]
            return Taken(seconds, _cpu(before, after), int(done.stderr.splitlines()[-1]), shares)

    return work


def by_hand(directory: Path, blobs: list[Path]) -> Callable[[], Taken]:
    disk, point = directory / "disk", directory / "mnt"
    point.mkdir(exist_ok=True)

    def work() -> Taken:
        with disk.open("wb") as file:
            file.truncate(_DISK)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", disk)
        _run("mount", "-o", "loop", disk, point)
        try:
            for blob in blobs:
                _run(*_on_cores(1), "tar", "-xf", blob, "-C", point)
        finally:
            _run("umount", point)
        _run(*_on_cores(1), "lz4", "-1", "-q", "-f", disk, directory / "disk.lz4")
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        (directory / "disk.lz4").unlink()
        disk.unlink()
        return Taken(seconds, _cpu(before, after))

    return work


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def _cpu(before: resource.struct_rusage, after: resource.struct_rusage) -> float:
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _on_cores(count: int) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))[:count]
    return ["taskset", "-c", ",".join(map(str, cores))]


# --- what it is measured with


def make_archives(directory: Path) -> list[Path]:
    """The layers as plain tars of about the same size."""
    files: dict[str, int] = {}
    for top in _TREES:
        for where, _, names in sorted(os.walk(top)):
            for name in sorted(names):
                path = os.path.join(where, name)
                if os.path.isfile(path) and not os.path.islink(path) and path not in files:
                    files[path] = os.path.getsize(path)
    archives = [directory / f"{number}.tar" for number in range(_LAYERS)]
    # One huge library is not to be a layer of its own.
    waiting = iter([path for path, size in files.items() if size < _LIMIT / _LAYERS / 2])
    for archive in archives:
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            while tar.offset < _LIMIT / _LAYERS:
                tar.add(next(waiting))
    return archives


def packed(archive: Path, kind: str) -> Path:
    if kind == "tar":
        return archive
    target = archive.with_suffix(".tar.gz")
    with archive.open("rb") as source, gzip.GzipFile(target, "wb", 6, mtime=0) as file:
        shutil.copyfileobj(source, file, 1 << 20)
    return target


def make_layout(path: Path, archives: list[Path], blobs: list[Path], kind: str) -> Path:
    """An OCI layout with the image, tagged v1."""
    store = path / "blobs" / "sha256"
    store.mkdir(parents=True)
    suffix = "+gzip" if kind == "gzip" else ""
    layers = []
    for blob in blobs:
        digest, size = _digest(blob), blob.stat().st_size
        os.link(blob, store / digest[7:])
        media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
        layers.append({"mediaType": media_type, "digest": digest, "size": size})
    rootfs = {"type": "layers", "diff_ids": [_digest(archive) for archive in archives]}
    config = _put(store, {"os": "linux", "architecture": "amd64", "rootfs": rootfs},
                  "application/vnd.oci.image.config.v1+json")  # fmt: skip
    kind_of_manifest = "application/vnd.oci.image.manifest.v1+json"
    manifest = _put(store, {"schemaVersion": 2, "mediaType": kind_of_manifest, "config": config,
                            "layers": layers}, kind_of_manifest)  # fmt: skip
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return path


def _put(store: Path, document: dict[str, object], media_type: str) -> dict[str, object]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (store / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
