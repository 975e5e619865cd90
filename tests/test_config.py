"""The global configuration and the image config, against the documents that describe them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import golden

from hybrid import errors
from hybrid.config import (
    CredentialConfig,
    ImageConfig,
    LowerConfig,
    RegistryHost,
    UpperConfig,
    load_global_config,
    load_image_config,
    local_layer_path,
)
from hybrid.config import global_config as module
from hybrid.config.image_config import IMAGE_ROWS, LOWER_ROWS, UPPER_ROWS
from hybrid.config.rows import Kind, Setting
from hybrid.config.settings import GLOBAL_ROWS, REGISTRY_HOST_ROWS
from hybrid.core.registry_settings import RegistrySettings
from hybrid.errors import ConfigError, HybridError, NotFoundError

DOCS = Path(__file__).parents[1] / "docs"
DIGEST = "sha256:" + "ab" * 32
GIB = 1 << 30

# What overlaybd installs, as far as its documents show it: every object it knows is in use.
SHIPPED = {
    "logConfig": {"logLevel": 1, "logPath": "/var/log/overlaybd.log"},
    "cacheConfig": {
        "cacheType": "file",
        "cacheDir": "/opt/overlaybd/registry_cache",
        "cacheSizeGB": 4,
    },
    "gzipCacheConfig": {
        "enable": True,
        "cacheDir": "/opt/overlaybd/gzip_cache",
        "cacheSizeGB": 4,
    },
    "credentialConfig": {"mode": "file", "path": "/opt/overlaybd/cred.json"},
    "ioEngine": 0,
    "download": {"enable": True, "delay": 600, "delayExtra": 30, "maxMBps": 100},
    "p2pConfig": {"enable": False, "address": "localhost:19145/dadip2p"},
    "exporterConfig": {"enable": False, "uriPrefix": "/metrics", "port": 9863},
    "enableAudit": True,
    "auditPath": "/var/log/overlaybd-audit.log",
}


@pytest.fixture(autouse=True)
def no_system_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's files nor its environment count."""
    monkeypatch.delenv("HYBRID_CONFIG", raising=False)
    system = (tmp_path / "hybrid.json", tmp_path / "overlaybd.json")
    monkeypatch.setattr(module, "SYSTEM_CONFIGS", system)
    monkeypatch.setattr(module, "OVERLAYBD_CONFIG", system[1])


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(value: Any, name: str = "test.json") -> Path:
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return _write


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# -- the global configuration: where it comes from -----------------------------------------------


def test_defaults_without_any_file() -> None:
    config = load_global_config()
    assert config.file is None
    assert config.log_level == logging.INFO
    assert config.log_path is None
    assert config.cache_limit_bytes == 4 * GIB
    assert config.refill_bytes == 262144
    assert config.registries == {}


def test_defaults_are_those_of_the_registry_client() -> None:
    config, registry = load_global_config(), RegistrySettings()
    assert config.connect_seconds == registry.connect_seconds
    assert config.read_seconds == registry.read_seconds
    assert config.retry_seconds == registry.retry_seconds
    assert config.credentials == CredentialConfig()


def test_search_order(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def agent() -> str:
        return load_global_config().user_agent

    write({"userAgent": "overlaybd's"}, "overlaybd.json")
    assert agent() == "overlaybd's"
    write({"userAgent": "ours"}, "hybrid.json")
    assert agent() == "ours"
    monkeypatch.setenv("HYBRID_CONFIG", str(write({"userAgent": "environment's"}, "env.json")))
    assert agent() == "environment's"
    named = write({"userAgent": "named"}, "named.json")
    assert load_global_config(named).user_agent == "named"


def test_system_files_are_those_of_the_documents() -> None:
    # Read anew, since the fixture above puts others in their place.
    code = "from hybrid.config import global_config as g; print(*g.SYSTEM_CONFIGS)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["/etc/hybrid/hybrid.json", "/etc/overlaybd/overlaybd.json"]


def test_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file: .*missing\.json"):
        load_global_config(tmp_path / "missing.json")
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "gone.json"))
    with pytest.raises(ConfigError, match=r"gone\.json \(HYBRID_CONFIG names it\)"):
        load_global_config()


# -- the global configuration: what it means -----------------------------------------------------


def test_every_key(write: Any) -> None:
    path = write(
        {
            "logConfig": {"logLevel": 3, "logPath": "/l/log"},
            "cacheConfig": {
                "cacheType": "file",
                "cacheDir": "/c",
                "cacheSizeGB": 0.5,
                "refillSize": 1048576,
            },
            "credentialFilePath": "cred.json",
            "credentialConfig": {
                "mode": "https",
                "path": "https://cred.test/auth",
                "timeout": 3,
                "client_cert_path": "/a",
                "client_key_path": "/b",
                "server_ca_path": "/c",
            },
            "certConfig": {"certFile": "/cert", "keyFile": "/key"},
            "userAgent": "me/1",
            "registryFsVersion": "v1",
            "registry": {"connectTimeout": 1.5, "readTimeout": 2, "retryBudget": 0},
            "registries": {
                "Reg.test:5000": {"insecure": True},
                "plain.test": {"plainHttp": True},
                "[::1]:5000": {"caFile": "ca.pem"},
            },
        }
    )
    config = load_global_config(path)
    assert config.file == path
    assert (config.log_level, config.log_path) == (logging.ERROR, Path("/l/log"))
    assert config.cache_dir == Path("/c/hybrid")
    assert config.cache_limit_bytes == GIB // 2
    assert config.refill_bytes == 1048576
    assert config.credentials == module.CredentialConfig(
        mode="https",
        path="https://cred.test/auth",
        timeout_seconds=3,
        file=path.parent / "cred.json",
        client_cert_path=Path("/a"),
        client_key_path=Path("/b"),
        server_ca_path=Path("/c"),
    )
    assert (config.client_cert_file, config.client_key_file) == (Path("/cert"), Path("/key"))
    assert config.user_agent == "me/1"
    times = (config.connect_seconds, config.read_seconds, config.retry_seconds)
    assert times == (1.5, 2, 0)
    assert config.registries == {
        "reg.test:5000": RegistryHost(insecure=True),
        "plain.test": RegistryHost(plain_http=True),
        "[::1]:5000": RegistryHost(ca_file=path.parent / "ca.pem"),
    }


@pytest.mark.parametrize(
    ("given_keys", "level", "path"),
    [
        ({"logLevel": 0, "logPath": "/old"}, logging.DEBUG, "/old"),
        (
            {"logLevel": 0, "logPath": "/old", "logConfig": {"logLevel": 2, "logPath": "/new"}},
            logging.WARNING,
            "/new",
        ),
        # Without a path in the object the older keys count, not a mixture.
        ({"logLevel": 0, "logConfig": {"logLevel": 3}}, logging.DEBUG, None),
        ({"logLevel": 0, "logConfig": {"logPath": "/new"}}, logging.INFO, "/new"),
    ],
)
def test_precedence_of_log_keys(
    write: Any, given_keys: dict[str, Any], level: int, path: str | None
) -> None:
    config = load_global_config(write(given_keys))
    assert (config.log_level, config.log_path) == (level, Path(path) if path else None)


@pytest.mark.parametrize(
    ("given_keys", "directory", "gigabytes"),
    [
        ({"registryCacheDir": "/old", "registryCacheSizeGB": 1}, "/old/hybrid", 1),
        (
            {"registryCacheDir": "/old", "cacheConfig": {"cacheType": "file", "cacheDir": "/new"}},
            "/new/hybrid",
            4,
        ),
        (
            {
                "registryCacheDir": "/old",
                "registryCacheSizeGB": 1,
                "cacheConfig": {"cacheDir": "/new", "cacheSizeGB": 9},
            },
            "/old/hybrid",
            1,
        ),
        ({"registryCacheDir": "/old", "cacheConfig": {"refillSize": 4096}}, "/old/hybrid", 4),
    ],
)
def test_precedence_of_cache_keys(
    write: Any, given_keys: dict[str, Any], directory: str, gigabytes: int
) -> None:
    config = load_global_config(write(given_keys))
    assert config.cache_dir == Path(directory)
    assert config.cache_limit_bytes == gigabytes * GIB


def test_ignored_half_of_an_object_is_named(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    load_global_config(write({"cacheConfig": {"cacheDir": "/c"}, "logConfig": {"logLevel": 0}}))
    text = "\n".join(warnings_of(caplog))
    assert "cacheConfig.cacheDir ignored, as cacheConfig.cacheType is not set" in text
    assert "logConfig.logLevel ignored, as logConfig.logPath is not set" in text


@pytest.mark.parametrize("cache_type", ["ocf", "download"])
@pytest.mark.parametrize("form", ["old", "new"])
def test_other_caches_are_replaced(
    write: Any, caplog: pytest.LogCaptureFixture, cache_type: str, form: str
) -> None:
    keys = {"cacheType": cache_type}
    load_global_config(write(keys if form == "old" else {"cacheConfig": keys}))
    assert [m for m in warnings_of(caplog) if f"no {cache_type} cache" in m]


@pytest.mark.parametrize(("asked", "got"), [(4096, 65536), (65536, 65536), (131072, 131072)])
def test_small_refills_are_raised(write: Any, asked: int, got: int) -> None:
    assert load_global_config(write({"cacheConfig": {"refillSize": asked}})).refill_bytes == got


def test_credential_paths(write: Any, tmp_path: Path) -> None:
    def path(mode: str, text: str) -> str:
        keys = {"credentialConfig": {"mode": mode, "path": text}}
        return load_global_config(write(keys)).credentials.path

    assert path("file", "c.json") == str(tmp_path / "c.json")
    assert path("uds", "/run/s.sock") == "/run/s.sock"
    assert path("http", "localhost:1/auth") == "http://localhost:1/auth"
    assert path("http", "http://localhost:1/auth") == "http://localhost:1/auth"
    assert path("https", "HTTPS://Localhost:1/A") == "https://Localhost:1/A"
    with pytest.raises(ConfigError) as caught:
        path("https", "http://user:hunter2@localhost/auth?key=hunter2")
    assert "hunter2" not in str(caught.value)


# -- the cache directory of different users ------------------------------------------------------


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int, **environment: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("uid", "environment", "directory"),
    [
        (0, {"XDG_CACHE_HOME": "/x"}, "/var/cache/hybrid"),
        (1000, {"HOME": "/home/u"}, "/home/u/.cache/hybrid"),
        (1000, {"HOME": "/home/u", "XDG_CACHE_HOME": "/x"}, "/x/hybrid"),
        (1000, {"HOME": "/home/u", "XDG_CACHE_HOME": "relative"}, "/home/u/.cache/hybrid"),
    ],
)
def test_default_cache_directory(
    monkeypatch: pytest.MonkeyPatch, uid: int, environment: dict[str, str], directory: str
) -> None:
    as_user(monkeypatch, uid, **environment)
    assert load_global_config().cache_dir == Path(directory)


def test_system_cache_is_for_those_who_can_write_it(
    write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = write({"registryCacheDir": "cache"}, "hybrid.json")
    as_user(monkeypatch, 1000, HOME="/home/u")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert load_global_config().cache_dir == Path("/home/u/.cache/hybrid")
    # Who names a file means it.
    assert load_global_config(file).cache_dir == tmp_path / "cache/hybrid"
    monkeypatch.setattr(os, "access", lambda path, mode: path == tmp_path)
    assert load_global_config().cache_dir == tmp_path / "cache/hybrid"


# -- the global configuration: what is wrong with it ---------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"cacheConfig": {"cacheSizeGB": "4"}},
            "cacheConfig.cacheSizeGB: expected a number, got a",
        ),
        ({"cacheConfig": {"cacheSizeGB": True}}, "expected a number, got a boolean"),
        ({"cacheConfig": {"cacheSizeGB": -1}}, "cacheConfig.cacheSizeGB: -1 is too small"),
        ({"cacheConfig": {"refillSize": 4096.0}}, "expected an integer, got a number"),
        ({"cacheConfig": {"refillSize": 100000}}, "cacheConfig.refillSize: 100000 is no power"),
        ({"cacheConfig": {"refillSize": 1 << 40}}, "too large"),
        ({"cacheConfig": {"refillSize": 1 << 400}}, "too large"),
        ({"cacheConfig": {"cacheType": "tape"}}, "cacheConfig.cacheType: 'tape' is not known"),
        ({"cacheType": "tape"}, "cacheType: 'tape' is not known"),
        ({"cacheConfig": []}, "cacheConfig: expected an object, got an array"),
        ({"logLevel": 4}, "logLevel: 4 is too large"),
        ({"logLevel": None}, "logLevel: expected an integer, got null"),
        ({"p2pConfig": {"enable": 1}}, "p2pConfig.enable: expected a boolean, got an integer"),
        ({"download": {"delay": "soon"}}, "download.delay: expected an integer, got a string"),
        ({"userAgent": "a\nb"}, "userAgent: the string has control characters"),
        ({"credentialConfig": {"mode": "ftp"}}, "credentialConfig.mode: 'ftp' is not known"),
        ({"credentialConfig": {"mode": "file"}}, "credentialConfig.path: missing"),
        (
            {"credentialConfig": {"mode": "https", "path": "http://h"}},
            "credentialConfig.path: it begins with http://, but mode 'https' needs https://",
        ),
        (
            {"credentialConfig": {"mode": "file", "path": "~/c"}},
            "credentialConfig.path: '~/c': '~'",
        ),
        ({"credentialFilePath": "~"}, "credentialFilePath: '~': '~' is"),
        ({"cacheConfig": {"cacheType": "file", "cacheDir": "~/c"}}, "cacheConfig.cacheDir: '~/c'"),
        ({"registries": {"h": {"caFile": "~u/c"}}}, "registries.h.caFile: '~u/c'"),
        ({"registries": {"Host:5000": {}, "host:5000": {}}}, "registries.host:5000: this host"),
        ({"registries": {"h": True}}, "registries.h: expected an object, got a boolean"),
        ({"registries": {"h": {"insecure": 1}}}, "registries.h.insecure: expected a boolean"),
        ({"registries": {"https://h": {}}}, "registries.https://h: this is no host name"),
        ({"registry": {"readTimeout": 0}}, "registry.readTimeout: 0 is too small"),
        ([], "expected an object, got an array"),
        ("", "is not JSON: Expecting value at line 1, column 1"),
        ('{\n  "a": 1,\n  // b\n}', "at line 3, column 3 (JSON has no comments)"),
        ('{"logLevel": 1, "logLevel": 2}', "the key 'logLevel' stands twice"),
        ('{"registry": {"readTimeout": NaN}}', "NaN is no number"),
        ('{"registry": {"readTimeout": 1e999}}', "the number is too large"),
        ("[" * 100_000, "is not JSON that hybrid can read"),
        ('{"logLevel": ' + "1" * 5000 + "}", "is not JSON that hybrid can read"),
    ],
)
def test_bad_values_are_named(write: Any, value: Any, message: str) -> None:
    path = write(value)
    with pytest.raises(ConfigError) as caught:
        load_global_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"userAgent": "\xe9"}')
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_global_config(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_global_config(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"cacheConfg": {}}, "unknown key cacheConfg ignored; did you mean cacheConfig?"),
        ({"useragent": ""}, "unknown key useragent ignored; did you mean userAgent?"),
        (
            {"cacheConfig": {"cacheSizeGb": 1}},
            "unknown key cacheConfig.cacheSizeGb ignored; did you mean cacheConfig.cacheSizeGB?",
        ),
        ({"zzz": 1}, "unknown key zzz ignored"),
        (
            {"cacheConfig.cacheDir": "/x"},
            "unknown key cacheConfig.cacheDir ignored; write an object inside of an object",
        ),
        ({"registries": {"h": {"insecur": 1}}}, "registries.h.insecur ignored; did you mean ins"),
    ],
)
def test_unknown_keys_are_warned_about(
    write: Any, caplog: pytest.LogCaptureFixture, value: Any, message: str
) -> None:
    load_global_config(write(value))
    assert [m for m in warnings_of(caplog) if message in m]


@pytest.mark.parametrize("section", ["download", "p2pConfig", "exporterConfig", "serviceConfig"])
def test_what_will_not_happen_is_said(
    write: Any, caplog: pytest.LogCaptureFixture, section: str
) -> None:
    load_global_config(write({section: {"enable": True}}))
    assert [m for m in warnings_of(caplog) if f"{section}.enable" in m]
    caplog.clear()
    load_global_config(write({section: {"enable": False}}))
    assert warnings_of(caplog) == []


def test_overlaybds_own_file_is_quiet(
    write: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    file = write(SHIPPED, "overlaybd.json")
    config = load_global_config()
    assert config.file == file
    assert config.cache_dir == Path("/opt/overlaybd/registry_cache/hybrid")
    assert warnings_of(caplog) == []
    assert [r for r in caplog.records if "download.enable" in r.getMessage()]


# -- image config --------------------------------------------------------------------------------


def test_image_config(write: Any, tmp_path: Path) -> None:
    path = write(
        {
            "repoBlobUrl": "https://h/v2/r/blobs",
            "lowers": [
                {"file": "L0.tar"},
                {"dir": "/layers/1", "digest": DIGEST, "size": 7},
                {"file": "fs", "targetFile": "t.tar"},
                {"file": "fs", "targetDigest": DIGEST, "gzipIndex": "gz", "dir": "d"},
            ],
            "upper": {},
            "resultFile": "result",
            "download": {"enable": True},
        }
    )
    assert load_image_config(path) == ImageConfig(
        file=path,
        repo_blob_url="https://h/v2/r/blobs",
        lowers=(
            LowerConfig(file=tmp_path / "L0.tar"),
            LowerConfig(directory=Path("/layers/1"), digest=DIGEST, size=7),
            LowerConfig(file=tmp_path / "fs", target_file=tmp_path / "t.tar"),
            LowerConfig(
                file=tmp_path / "fs",
                directory=tmp_path / "d",
                target_digest=DIGEST,
                gzip_index=tmp_path / "gz",
            ),
        ),
        upper=None,
        result_file=tmp_path / "result",
        acceleration_layer=False,
        record_trace_path=None,
    )
    assert [lower.is_turbo for lower in load_image_config(path).lowers] == [
        False,
        False,
        True,
        True,
    ]


def test_paths_are_absolute_though_the_config_is_not(
    write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write({"lowers": [{"file": "L0.tar"}], "upper": {"index": "i", "data": "/d"}}, "image.json")
    monkeypatch.chdir(tmp_path)
    config = load_image_config(Path("image.json"))
    assert config.lowers[0].file == tmp_path / "L0.tar"
    assert config.upper == UpperConfig(index=tmp_path / "i", data=Path("/d"))


def test_acceleration_layer_is_no_data(write: Any) -> None:
    lowers = [{"file": "L0"}, {"dir": "trace"}]
    config = load_image_config(write({"lowers": lowers, "accelerationLayer": True}))
    assert len(config.lowers) == 2
    assert config.data_lowers == config.lowers[:1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "the image has no layers"),
        ({"lowers": [], "upper": {}}, "the image has no layers"),
        ({"lowers": [], "upper": {"vsize": 64}}, "the image has no layers"),
        ({"lowers": [{"dir": "t"}], "accelerationLayer": True}, "the image has no layers"),
        ({"lowers": {}}, "lowers: expected an array, got an object"),
        ({"lowers": [3]}, "lowers[0]: expected an object, got an integer"),
        ({"lowers": [{"file": "a"}, {"file": 3}]}, "lowers[1].file: expected a string"),
        ({"lowers": [{"file": "a\0"}]}, "lowers[0].file: the string has control characters"),
        ({"lowers": [{"size": 3}]}, "lowers[0]: it has neither file nor dir nor digest"),
        ({"lowers": [{"file": "a", "size": -1}]}, "lowers[0].size: -1 is too small"),
        ({"lowers": [{"file": "a", "digest": "sha256:../.."}]}, "lowers[0].digest: 'sha256:../..'"),
        ({"lowers": [{"digest": DIGEST}]}, "lowers[0]: it has only a digest, and repoBlobUrl"),
        ({"lowers": [{"file": "a"}] * 256}, "lowers: 256 layers"),
        ({"lowers": [{"file": "a"}, {"dir": "~/d"}]}, "lowers[1].dir: '~/d'"),
        ({"upper": {"index": "~/i", "data": "d"}}, "upper.index: '~/i'"),
        ({"upper": {"index": "i"}}, "upper: it needs both index and data"),
        ({"upper": {"data": 1}}, "upper.data: expected a string, got an integer"),
        ({"lowers": [{"file": "a"}], "download": {"enable": "yes"}}, "download.enable: expected a"),
        ({"lowers": [{"file": "a"}], "resultFile": 1}, "resultFile: expected a string"),
        (
            {"lowers": [{"file": "a"}], "accelerationLayer": True, "recordTracePath": "t"}
            | {"lowers": [{"file": "a"}, {"dir": "t"}]},
            "recordTracePath: not allowed together with accelerationLayer",
        ),
        ('{"lowers": [}', "is not JSON: Expecting value at line 1, column 13"),
    ],
)
def test_bad_image_configs(write: Any, value: Any, message: str) -> None:
    path = write(value)
    with pytest.raises(ConfigError) as caught:
        load_image_config(path)
    assert f"{path}" in str(caught.value)
    assert message in str(caught.value)


def test_255_lowers_are_allowed(write: Any) -> None:
    assert len(load_image_config(write({"lowers": [{"file": "a"}] * 255})).lowers) == 255


def test_unknown_keys_of_images_are_for_the_debug_log(
    write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    load_image_config(write({"lowers": [{"file": "a", "x": 1}], "upper": {"vsize": 64}, "y": 1}))
    assert warnings_of(caplog) == []
    text = caplog.text
    assert "lowers[0].x" in text
    assert "upper.vsize" in text
    assert "unknown key y " in text


def test_missing_image_config_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such configuration file"):
        load_image_config(tmp_path / "config.v1.json")


def test_golden_image_configs() -> None:
    configs = sorted((golden.tree() / "img").glob("*.config.json"))
    assert len(configs) >= 7
    for path in configs:
        config = load_image_config(path)
        document = json.loads(path.read_text())
        assert [lower.file for lower in config.lowers] == [
            path.parent / item["file"] for item in document["lowers"]
        ]
        assert (config.upper is not None) == bool(document.get("upper"))


# -- the local file of a lower -------------------------------------------------------------------


def test_search_order_of_local_layers(tmp_path: Path) -> None:
    lower = LowerConfig(file=tmp_path / "file", directory=tmp_path)
    assert local_layer_path(lower) is None
    for name in ("overlaybd.sealed", ".commit", "overlaybd.commit", "file"):
        (tmp_path / name).touch()
        assert local_layer_path(lower) == tmp_path / name


def test_no_directory_is_not_the_root(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def access(path: Any, mode: int) -> bool:
        asked.append(str(path))
        return False

    lowers = [{"dir": "", "digest": DIGEST}]
    path = write({"repoBlobUrl": "https://h/v2/r/blobs", "lowers": lowers})
    lower = load_image_config(path).lowers[0]
    monkeypatch.setattr(os, "access", access)
    assert local_layer_path(lower) is None
    assert asked == []


# -- whatever stands in the file -----------------------------------------------------------------

KEYS = sorted({part for row in (*GLOBAL_ROWS, *IMAGE_ROWS) for part in row.key.split(".")})
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(value=json_values | st.binary(max_size=40))
def test_any_file_is_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    for load in (load_global_config, load_image_config):
        message = ""
        try:
            load(path)
        except HybridError as error:
            message = str(error)
        assert "\n" not in message


# -- the documents -------------------------------------------------------------------------------


def doc_line(row: Setting, place: str = "") -> str:
    default = "" if row.default in (None, "") else f"`{json.dumps(row.default)}`"
    return f"| `{place}{row.key}` | {row.kind.value} | {default} | {row.meaning} |"


ALL_ROWS = [
    *((row, "") for row in GLOBAL_ROWS),
    *((row, "registries.HOST.") for row in REGISTRY_HOST_ROWS),
    *((row, "") for row in IMAGE_ROWS),
    *((row, "lowers[N].") for row in LOWER_ROWS),
    *((row, "upper.") for row in UPPER_ROWS),
]


def test_every_setting_is_documented_and_nothing_else() -> None:
    lines = (DOCS / "configuration.md").read_text().splitlines()
    wanted = {doc_line(row, place) for row, place in ALL_ROWS}
    written = {line for line in lines if line.startswith("| `")}
    assert written == wanted


def test_defaults_have_the_type_of_their_row() -> None:
    types: dict[Kind, tuple[type, ...]] = {
        Kind.BOOLEAN: (bool,),
        Kind.INTEGER: (int,),
        Kind.NUMBER: (int, float),
        Kind.STRING: (str,),
        Kind.OBJECT: (type(None),),
        Kind.ARRAY: (type(None),),
    }
    for row, _ in ALL_ROWS:
        assert type(row.default) in types[row.kind], row.key


def test_exit_codes_are_those_of_the_classes() -> None:
    table: dict[str, int] = {}
    for line in (DOCS / "exit-codes.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1].isdigit():
            for name in cells[2].replace("`", "").split(", "):
                assert name not in table
                table[name] = int(cells[1])
    classes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, HybridError)
    }
    others = {"success": 0, "EXIT_BUG": errors.EXIT_BUG, "EXIT_INTERRUPTED": 130}
    assert errors.EXIT_INTERRUPTED == 130
    assert table == classes | others
