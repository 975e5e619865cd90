"""``hybrid doctor`` on this machine, whatever it has; and the judgements that need no machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from support.faulty_registry import Reply, faulty_registry
from support.mounting import private_dev
from support.registry import RealRegistry, free_port
from support.registry_client import without_environment

from hybrid.cli.doctor import command
from hybrid.config import load_global_config
from hybrid.core.reachability import ask_registries, check_host
from hybrid.errors import HybridError, NetworkError, UsageError
from hybrid.mount import doctor
from hybrid.mount.doctor import DoctorCode, Examination, examine_machine
from hybrid.mount.findings import Status, Verdict
from hybrid.mount.surroundings import judge_cache

GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own mounts, configuration and proxies."""
    without_environment(monkeypatch)
    monkeypatch.setenv("HYBRID_STATE_DIR", str(tmp_path / "state"))
    config = tmp_path / "hybrid.json"
    write_config(config)
    monkeypatch.setenv("HYBRID_CONFIG", str(config))


def write_config(path: Path, **more: object) -> None:
    cache = {"cacheType": "file", "cacheDir": str(path.parent / "cache"), "cacheSizeGB": 0.01}
    path.write_text(json.dumps({"cacheConfig": cache, **more}))


def run_doctor(*arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments], catch_exceptions=False)


def modprobe_could() -> bool:
    """An independent judge of the modules: modprobe's own dry run."""
    program = shutil.which("modprobe") or "/usr/sbin/modprobe"
    names = ["target_core_user", "tcm_loop", "sd_mod", "uio"]
    done = subprocess.run([program, "-n", "-a", *names], capture_output=True, check=False)
    return done.returncode == 0 and os.geteuid() == 0


def test_it_is_right_about_this_machine() -> None:
    done = run_doctor("--json")
    found = json.loads(done.stdout)
    assert found["modes"]["tcmu"]["usable"] is modprobe_could()
    assert found["modes"]["fuse"] == {"usable": True, "mounts": True, "reason": None}
    assert done.exit_code == (0 if modprobe_could() else 20)
    assert found["leftovers"] == []
    if not modprobe_could():
        problems = [item for item in found["findings"] if item["status"] == "problem"]
        assert problems[0]["text"] == found["modes"]["tcmu"]["reason"]
        assert all(item["remedy"] for item in problems)


def test_it_changes_nothing(tmp_path: Path) -> None:
    run_doctor()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "hybrid.json"]


def test_people_get_groups_remedies_and_a_verdict_on_each_mode(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    lines = run_doctor().stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")][:4] == [
        "Mode tcmu",
        "Mode fuse",
        "Both modes",
        "Leftovers",
    ]
    assert lines[-2].startswith("tcmu: ")
    assert lines[-1] == "fuse: usable"
    (at,) = [i for i, line in enumerate(lines) if line.startswith("  warning  cache ")]
    assert lines[at].endswith("cache is no directory")
    assert lines[at + 1].strip() == "-> mend that, or reads are not cached"
    assert lines[-3].split() == ["ok", "none"]


@pytest.mark.parametrize(("tcmu", "fuse", "code"), [(1, 1, 0), (0, 1, 20), (1, 0, 21), (0, 0, 22)])
def test_the_exit_code_tells_the_usable_modes(
    monkeypatch: pytest.MonkeyPatch, tcmu: int, fuse: int, code: int
) -> None:
    found = Examination([], [], Verdict(bool(tcmu), bool(tcmu)), Verdict(bool(fuse), False, "x"))
    assert found.code is DoctorCode(code)
    monkeypatch.setattr("hybrid.cli.doctor.examine_machine", lambda *_: found)
    assert run_doctor("--json").exit_code == code


def test_a_machine_without_fuse_device() -> None:
    script = (
        "from hybrid.mount.doctor import examine_machine; print(examine_machine(None, []).fuse)"
    )
    done = subprocess.run(
        [*private_dev(), sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("not usable: no FUSE on this machine: cannot open /dev/fuse")


def test_a_configuration_that_is_wrong_is_a_finding_among_others(tmp_path: Path) -> None:
    (tmp_path / "hybrid.json").write_text('{"registries": 7}')
    found = examine_machine(None, [])
    (config,) = [item for item in found.findings if item.name == "configuration"]
    assert config.status is Status.PROBLEM
    assert "registries" in config.text
    assert found.fuse.usable


def test_a_state_directory_that_is_open_to_others(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    found = examine_machine(None, [])
    (state,) = [item for item in found.findings if item.name == "state directory"]
    assert state.status is Status.PROBLEM
    assert "has mode 0755" in state.text
    # Whose leftovers are in it, nobody can tell.
    assert [item.name for item in found.findings if item.group == "leftovers"] == ["search"]


def test_a_cache_directory_that_others_write_to(tmp_path: Path) -> None:
    (tmp_path / "cache" / "hybrid").mkdir(parents=True)
    (tmp_path / "cache" / "hybrid").chmod(0o777)
    (cache,) = [item for item in examine_machine(None, []).findings if item.name == "cache"]
    assert cache.status is Status.WARNING
    assert "others may write to it" in cache.text


def test_a_cache_in_use_is_measured(tmp_path: Path) -> None:
    directory = tmp_path / "cache" / "hybrid"
    directory.mkdir(parents=True, mode=0o700)
    (directory / f"sha256-{'0' * 64}-5-{'1' * 16}.blob").write_bytes(bytes(3 * MIB))
    (directory / "something else").write_bytes(bytes(MIB))
    (cache,) = [item for item in examine_machine(None, []).findings if item.name == "cache"]
    assert cache.text.startswith(f"{directory}: 3 of 10 MiB used, ")


@pytest.mark.parametrize(
    ("limit", "used", "free", "status"),
    [
        (4 * GIB, 0, 4 * GIB, Status.OK),
        (4 * GIB, 3 * GIB, GIB, Status.OK),
        (4 * GIB, GIB, GIB, Status.WARNING),
        (0, 0, 0, Status.INFO),
    ],
)
def test_space_for_the_cache(limit: int, used: int, free: int, status: Status) -> None:
    seen = {"problem": "", "used": used, "free": free}
    assert judge_cache(Path("/c"), limit, seen).status is status


# -- registries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("registry.example.com", "registry.example.com"),
        ("Registry.Example.com:5000", "registry.example.com:5000"),
        ("localhost", "localhost"),
        ("[::1]:5000", "[::1]:5000"),
        ("docker.io", "docker.io"),
    ],
)
def test_registries_are_named_as_in_images(text: str, host: str) -> None:
    assert check_host(text) == host


@pytest.mark.parametrize(
    "text",
    ["", "library", "host/repo", "https://host.example", "oci:x", "a b.c", "h.x:99999", "@."],
)
def test_what_is_no_registry(text: str) -> None:
    with pytest.raises(UsageError, match="is no registry"):
        check_host(text)
    assert isinstance(CliRunner().invoke(command, [text]).exception, UsageError)


@pytest.mark.parametrize("auth", ["", "htpasswd"])
def test_registries_that_answer(auth: str, tmp_path: Path) -> None:
    with RealRegistry(auth=auth) as registry:  # type: ignore[arg-type]
        write_config(tmp_path / "hybrid.json", registries={registry.host: {"plainHttp": True}})
        found = [item for item in examine_machine(None, []).findings if "registry" in item.name]
        again = [item for item in examine_machine(None, [registry.host]).findings]
    (item,) = found
    assert item.status is Status.OK
    assert item.text == f"{registry.host} answers" + (", and wants a login" if auth else "")
    assert item in again


def test_a_registry_that_is_not_there() -> None:
    host = f"127.0.0.1:{free_port()}"
    (item,) = [item for item in examine_machine(None, [host]).findings if "registry" in item.name]
    assert item.status is Status.WARNING
    assert f"cannot connect to {host}" in item.text
    assert item.remedy


async def test_a_silent_registry_does_not_hold_up_others(tmp_path: Path) -> None:
    async with (
        faulty_registry(lambda request: Reply(silent=True)) as silent,
        faulty_registry(lambda request: Reply(200)) as good,
        faulty_registry(lambda request: Reply(503)) as broken,
    ):
        hosts = [silent.host, good.host, broken.host]
        plain = {host: {"plainHttp": True} for host in hosts}
        write_config(tmp_path / "hybrid.json", registries=plain)
        with trio.fail_after(10):
            answers = await ask_registries(load_global_config(), hosts, 1.0)
    assert isinstance(answers[0], NetworkError)
    assert answers[1] == f"{good.host} answers"
    assert "answers 503" in str(answers[2])
    assert len(broken.requests) == 1


def test_all_registries_together_have_one_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    async def never(config: object, hosts: list[str], seconds: float) -> list[str | HybridError]:
        asked.append(seconds)
        return [NetworkError("no")] * len(hosts)

    monkeypatch.setattr(doctor, "ask_registries", never)
    examine_machine(None, ["a.example", "b.example", "a.example"])
    assert asked == [5.0]
