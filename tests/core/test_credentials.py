"""Logins: overlaybd's file and services, Docker's and Podman's files, helper programs."""

import base64
import json
import os
import ssl
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
import trustme
from support.faulty_registry import Reply, Request, faulty_registry
from support.side_servers import SideServer, reply

from hybrid.config import CredentialConfig
from hybrid.core.credential_service import service_name
from hybrid.core.credentials import Credentials, Login, match_auths, normal_key
from hybrid.core.reference import RegistryReference
from hybrid.core.registry import Registry
from hybrid.core.registry_settings import RegistrySettings
from hybrid.core.retry import TransientError
from hybrid.errors import AuthError, ConfigError, NetworkError

HUB_KEY = "https://index.docker.io/v1/"
SECRET = "s3cr:et"


def encoded(user: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


class Home:
    """A home directory with credential files, and a directory of helper programs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = CredentialConfig(file=root / "cred.json", helper_seconds=5)
        self.environ = {"HOME": str(root)}
        self.programs = root / "bin"
        self.programs.mkdir()

    def docker(self, document: Any) -> Path:
        return write(self.root / ".docker" / "config.json", document)

    def helper(self, name: str, script: str) -> None:
        program = self.programs / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    async def lookup(self, host: str = "reg.x", repository: str = "team/app") -> Login | None:
        return await Credentials(self.settings, self.environ).lookup(host, repository)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    made = Home(tmp_path)
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    return made


async def test_nothing_anywhere_means_anonymous(home: Home) -> None:
    assert await home.lookup() is None
    home.environ = {}
    assert await home.lookup() is None


# -- matching ------------------------------------------------------------------------------------


def test_the_longest_prefix_wins_whatever_its_place() -> None:
    auths = {
        "reg.x": encoded("host"),
        "reg.x/team/app": encoded("app"),
        "reg.x/team": encoded("team"),
        "reg.x:5000": encoded("port"),
    }
    assert match_auths(auths, "reg.x", "team/app", "f") == Login("app", SECRET)
    assert match_auths(auths, "reg.x", "team/apple", "f") == Login("team", SECRET)
    assert match_auths(auths, "reg.x", "other", "f") == Login("host", SECRET)
    assert match_auths(auths, "reg.x:5000", "team/app", "f") == Login("port", SECRET)
    assert match_auths(auths, "reg.x.y", "team/app", "f") is None
    assert match_auths(auths, "reg", "x", "f") is None


@pytest.mark.parametrize("key", [HUB_KEY, "docker.io", "registry-1.docker.io", "index.docker.io"])
def test_docker_hub_has_many_names(key: str) -> None:
    assert match_auths({key: encoded("me")}, "docker.io", "library/redis", "f") is not None


@pytest.mark.parametrize(
    "key", ["reg.x", "https://reg.x", "HTTP://Reg.X/", "https://reg.x/v1/", "reg.x/v2/"]
)
def test_keys_with_scheme_and_path(key: str) -> None:
    assert normal_key(key) == "reg.x"
    assert match_auths({key: encoded("me")}, "reg.x", "a", "f") == Login("me", SECRET)


def test_the_plain_key_wins_over_the_decorated_one() -> None:
    for keys in (["reg.x", "https://reg.x/v1/"], ["https://reg.x/v1/", "reg.x"]):
        auths = {key: encoded(key.replace(":", "")) for key in keys}
        assert match_auths(auths, "reg.x", "a", "f") == Login("reg.x", SECRET)


def test_forms_of_an_entry() -> None:
    def login(entry: object) -> Login | None:
        return match_auths({"reg.x": entry}, "reg.x", "a", "f")

    assert login({"username": "u", "password": "p"}) == Login("u", "p")
    assert login(encoded("u", "p\0\0")) == Login("u", "p")
    assert login({**encoded("u", ""), "identitytoken": "t"}) == Login("u", "", "t")
    assert login({"identitytoken": "t"}) == Login("", "", "t")
    assert login({}) is None


def test_secrets_do_not_show() -> None:
    assert SECRET not in repr(Login("u", SECRET, SECRET))


# -- files ---------------------------------------------------------------------------------------


async def test_the_order_is_overlaybd_docker_podman(home: Home, tmp_path: Path) -> None:
    home.environ["XDG_RUNTIME_DIR"] = str(tmp_path)
    podman = tmp_path / "containers" / "auth.json"
    write(podman, {"auths": {"reg.x": encoded("podman")}})
    assert await home.lookup() == Login("podman", SECRET)
    home.docker({"auths": {"reg.x": encoded("docker")}})
    assert await home.lookup() == Login("docker", SECRET)
    write(home.settings.file, {"auths": {"reg.x": encoded("overlaybd")}})
    assert await home.lookup() == Login("overlaybd", SECRET)
    assert await home.lookup("other.x") is None


async def test_the_environment_names_files(home: Home, tmp_path: Path) -> None:
    home.docker({"auths": {"reg.x": encoded("home")}})
    write(tmp_path / "dc" / "config.json", {"auths": {"reg.x": encoded("named")}})
    home.environ["DOCKER_CONFIG"] = str(tmp_path / "dc")
    assert await home.lookup() == Login("named", SECRET)
    podman = write(tmp_path / "auth.json", {"auths": {"other.x": encoded("podman")}})
    home.environ["REGISTRY_AUTH_FILE"] = str(podman)
    assert await home.lookup("other.x") == Login("podman", SECRET)
    home.environ["REGISTRY_AUTH_FILE"] = str(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match=r"missing\.json"):
        await home.lookup("other.x")


async def test_mode_file_needs_its_file_and_reads_it_anew(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "named.json"
    home.settings = CredentialConfig(mode="file", path=str(path), file=home.settings.file)
    with pytest.raises(ConfigError, match=r"named\.json"):
        await home.lookup()
    for user in ("one", "two"):
        write(path, {"auths": {"reg.x": encoded(user)}})
        assert await home.lookup() == Login(user, SECRET)


async def test_an_unknown_mode(home: Home) -> None:
    home.settings = CredentialConfig(mode="carrier-pigeon")
    with pytest.raises(ConfigError, match="carrier-pigeon"):
        await home.lookup()


@pytest.mark.parametrize(
    "document",
    [
        "not json",
        "[]",
        "[" * 100_000,
        {"auths": []},
        {"auths": {"reg.x": 5}},
        {"auths": {"reg.x": {"auth": 5}}},
        {"auths": {"reg.x": {"auth": "%%%" + SECRET}}},
        {"auths": {"reg.x": {"auth": base64.b64encode(b"s3cret").decode()}}},
        {"auths": {"reg.x": {"auth": base64.b64encode(b"\xff:s3cret").decode()}}},
        {"credsStore": 5},
        {"credsStore": "../../evil"},
        {"credHelpers": {"reg.x": 5}},
        {"credHelpers": ["x"]},
    ],
)
async def test_a_broken_file_is_named_and_keeps_its_secrets(home: Home, document: Any) -> None:
    file = home.docker(document)
    with pytest.raises(ConfigError) as caught:
        await home.lookup()
    assert str(file) in str(caught.value)
    assert "s3c" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_directory_in_place_of_the_file(home: Home) -> None:
    (home.root / ".docker" / "config.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config\.json"):
        await home.lookup()


# -- helper programs -----------------------------------------------------------------------------


async def test_a_helper_gets_the_host_on_stdin(home: Home) -> None:
    home.helper("mine", 'read host; echo "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"$host\\"}"')
    home.docker({"credsStore": "mine"})
    assert await home.lookup("reg.x:5000") == Login("get", "reg.x:5000")
    assert await home.lookup("docker.io", "library/redis") == Login("get", HUB_KEY)


async def test_the_helper_of_a_host_goes_before_the_store(home: Home) -> None:
    home.helper("own", 'echo \'{"Username": "own", "Secret": "s"}\'')
    home.helper("all", 'echo \'{"Username": "all", "Secret": "s"}\'')
    home.docker({"credHelpers": {"reg.x": "own"}, "credsStore": "all"})
    assert await home.lookup("reg.x") == Login("own", "s")
    assert await home.lookup("other.x") == Login("all", "s")


async def test_a_helper_may_give_an_identity_token(home: Home) -> None:
    home.helper("mine", 'echo \'{"Username": "<token>", "Secret": "tok"}\'')
    home.docker({"credsStore": "mine"})
    assert await home.lookup() == Login("", "", "tok")


async def test_a_helper_without_the_host_leaves_it_to_auths(home: Home) -> None:
    home.helper("mine", "echo credentials not found in native keychain; exit 1")
    home.docker({"credsStore": "mine", "auths": {"reg.x": encoded("file"), "other.x": {}}})
    assert await home.lookup("reg.x") == Login("file", SECRET)
    assert await home.lookup("other.x") is None


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("printf 'no \\033[31mkeyring\\nmore' >&2; exit 1", "failed: no [31mkeyring"),
        ("exit 3", "exit status 3"),
        ('echo \'{"Username": "u", "Secret": "s3cret"}\'; exit 1', "exit status 1"),
        ("echo s3cret", "no Username and Secret"),
        ("echo '{}'", "no Username and Secret"),
        ('echo \'{"Username": 5, "Secret": "s3cret"}\'', "no string"),
    ],
)
async def test_a_failing_helper_is_named(home: Home, script: str, word: str) -> None:
    home.helper("mine", script)
    home.docker({"credsStore": "mine"})
    with pytest.raises(ConfigError) as caught:
        await home.lookup()
    assert word in str(caught.value)
    assert "docker-credential-mine" in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_a_missing_helper(home: Home) -> None:
    home.docker({"credsStore": "nowhere"})
    with pytest.raises(ConfigError, match="docker-credential-nowhere"):
        await home.lookup()


async def test_a_helper_that_hangs_is_ended(home: Home) -> None:
    pid_file = home.root / "pid"
    home.helper("mine", f"echo $$ > {pid_file}; exec sleep 1000")
    home.docker({"credsStore": "mine"})
    home.settings = CredentialConfig(file=home.root / "none", helper_seconds=0.3)
    with pytest.raises(ConfigError, match=r"no answer in 0\.3 s"):
        await home.lookup()
    assert_ended(pid_file)


async def test_a_helper_that_ignores_sigterm_is_ended_at_once(home: Home) -> None:
    pid_file = home.root / "pid"
    home.helper("mine", f"trap '' TERM; echo $$ > {pid_file}; exec sleep 1000")
    home.docker({"credsStore": "mine"})
    home.settings = CredentialConfig(file=home.root / "none", helper_seconds=0.3)
    with trio.fail_after(3), pytest.raises(ConfigError, match="docker-credential-mine"):
        await home.lookup()
    assert_ended(pid_file)


def test_a_helper_that_hangs_is_named_within_the_budget_of_a_manifest() -> None:
    assert CredentialConfig().helper_seconds < RegistrySettings().first_answer_seconds


@pytest.mark.parametrize("stream", ["", ">&2"])
async def test_a_helper_that_never_stops_talking_is_ended(home: Home, stream: str) -> None:
    pid_file = home.root / "pid"
    home.helper("mine", f"echo $$ > {pid_file}; exec cat /dev/zero {stream}")
    home.docker({"credsStore": "mine"})
    with pytest.raises(ConfigError, match=r"docker-credential-mine .* more than 65536 bytes"):
        await home.lookup()
    assert_ended(pid_file)


async def test_a_helper_that_reads_nothing(home: Home) -> None:
    home.helper("mine", 'exec 0<&-; echo \'{"Username": "u", "Secret": "s"}\'')
    home.docker({"credsStore": "mine"})
    assert await home.lookup() == Login("u", "s")


def assert_ended(pid_file: Path) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


# -- services ------------------------------------------------------------------------------------


class CredentialServer(SideServer):
    """overlaybd's credential service (spec: image-config 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.document: Any = None
        self.status = 200
        self.urls: list[str] = []

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        self.urls += parse_qs(urlsplit(request.path).query)["remote_url"]
        reply(request, self.status, json.dumps(self.document).encode())


@pytest.fixture
def service() -> Iterator[CredentialServer]:
    server = CredentialServer()
    with server:
        yield server


def success(auths: Any) -> dict[str, Any]:
    return {"traceId": "t-1", "success": True, "data": {"auths": auths}}


async def test_mode_http(home: Home, service: CredentialServer) -> None:
    home.settings = CredentialConfig(mode="http", path=f"http://{service.host}/auth")
    service.document = success({"reg.x/team": encoded("served")})
    assert await home.lookup() == Login("served", SECRET)
    assert service.urls == ["https://reg.x/v2/team/app/blobs/"]
    assert await home.lookup("other.x") is None


@pytest.mark.parametrize(
    ("document", "status", "error"),
    [
        ({"traceId": "t-1", "success": False}, 200, AuthError),
        ([], 200, NetworkError),
        ({"success": True, "data": 5}, 200, NetworkError),
        (success([]), 200, ConfigError),
        (success({}), 404, NetworkError),
        (success({}), 500, TransientError),
        (success({}), 429, TransientError),
    ],
)
async def test_a_service_that_fails(
    home: Home, service: CredentialServer, document: Any, status: int, error: type[Exception]
) -> None:
    home.settings = CredentialConfig(mode="http", path=f"http://{service.host}/auth")
    service.document, service.status = document, status
    with pytest.raises(error, match="credential service"):
        await home.lookup()


async def test_a_service_that_is_gone(home: Home, service: CredentialServer) -> None:
    host = service.host
    service.stop()
    home.settings = CredentialConfig(mode="http", path=f"http://{host}/auth")
    with pytest.raises(TransientError, match=host):
        await home.lookup()


@pytest.mark.parametrize(
    "path", ["not a url", "http://a..b/auth", f"http://{'a' * 64}/auth", "http://h:5x/auth"]
)
async def test_a_service_whose_url_is_none(home: Home, path: str) -> None:
    home.settings = CredentialConfig(mode="http", path=path)
    with pytest.raises(ConfigError, match=r"credentialConfig\.path.* is no URL of mode http"):
        await home.lookup()


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("http://user:s3cret@127.0.0.1:1/auth?key=s3cret#s3cret", "http://127.0.0.1:1/auth"),
        ("http://user:s3cret@[::1]:1/auth", "http://[::1]:1/auth"),
        ("http://user:1#s3cret@127.0.0.1:1/auth", "credential service ?"),
        ("http://s3cret/2@127.0.0.1:1/auth", "credential service ?"),
        ("http://user:s3cret#2@127.0.0.1:1/auth", "credential service ?"),
        ("http://user:s3cret@a..b/auth", "http://a..b/auth"),
    ],
)
def test_messages_name_the_service_without_its_secrets(path: str, shown: str) -> None:
    name = service_name(CredentialConfig(mode="http", path=path))
    assert shown in name
    assert "s3cret" not in name


@pytest.mark.parametrize("port", ["1", "s3cret"])
async def test_errors_of_a_service_keep_its_secrets(home: Home, port: str) -> None:
    path = f"http://user:s3cret@127.0.0.1:{port}/auth?key=s3cret"
    home.settings = CredentialConfig(mode="http", path=path)
    with pytest.raises((ConfigError, TransientError)) as caught:
        await home.lookup()
    assert "s3cret" not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__cause__ is None or "s3cret" not in str(caught.value.__cause__)


async def test_a_service_that_fails_once_is_asked_again(home: Home) -> None:
    answers = iter([Reply(503), Reply(200, json.dumps(success({})).encode())])

    def registry_answer(request: Request) -> Reply:
        if "authorization" in request.headers:
            return Reply(200, b"{}")
        return Reply(401, headers={"WWW-Authenticate": "Basic"})

    async with (
        faulty_registry(lambda request: next(answers)) as service,
        faulty_registry(registry_answer) as server,
    ):
        path = f"http://{service.host}/auth"
        home.docker({"auths": {server.host: encoded("me")}})
        credentials = Credentials(CredentialConfig(mode="http", path=path), home.environ)
        async with Registry(RegistrySettings(first_pause_seconds=0.001), credentials) as registry:
            ref = RegistryReference(server.host, "team/app")
            assert (await registry.get_manifest(ref, scheme="http")).data == b"{}"
        assert service.count("/auth") == 2


async def test_a_service_that_is_silent(home: Home) -> None:
    async with faulty_registry(lambda request: Reply(silent=True)) as server:
        path = f"http://{server.host}/auth"
        home.settings = CredentialConfig(mode="http", path=path, timeout_seconds=0.2)
        with pytest.raises(TransientError, match=r"no answer in 0\.2 s"):
            await home.lookup()


async def test_mode_https_verifies_the_service(home: Home, tmp_path: Path) -> None:
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    body = json.dumps(success({"reg.x": encoded("tls")})).encode()
    async with faulty_registry(lambda request: Reply(200, body), context) as server:
        path = f"https://{server.host}/auth"
        home.settings = CredentialConfig(mode="https", path=path)
        with pytest.raises(NetworkError, match="credential service"):
            await home.lookup()
        ca_path = tmp_path / "ca.pem"
        home.settings = CredentialConfig(mode="https", path=path, server_ca_path=ca_path)
        assert await home.lookup() == Login("tls", SECRET)
    home.settings = CredentialConfig(
        mode="https", path=path, server_ca_path=tmp_path / "missing.pem"
    )
    with pytest.raises(ConfigError, match="CA or client certificate"):
        await home.lookup()


async def test_mode_uds(home: Home, tmp_path: Path) -> None:
    seen: list[Request] = []
    body = json.dumps(success({"reg.x": encoded("socket")})).encode()

    def answer(request: Request) -> Reply:
        seen.append(request)
        return Reply(200, body)

    async with faulty_registry(answer) as server, trio.open_nursery() as nursery:
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(tmp_path / "s"))
        listener.listen()
        nursery.start_soon(trio.serve_listeners, server.serve, [trio.SocketListener(listener)])
        home.settings = CredentialConfig(mode="uds", path=str(tmp_path / "s"))
        assert await home.lookup() == Login("socket", SECRET)
        assert seen[0].path == "/auth?remote_url=https%3A%2F%2Freg.x%2Fv2%2Fteam%2Fapp%2Fblobs%2F"
        nursery.cancel_scope.cancel()
    home.settings = CredentialConfig(mode="uds", path=str(tmp_path / "missing"))
    with pytest.raises(TransientError, match="missing"):
        await home.lookup()
