"""Proxies of the environment: which one is used, what its failures say, and what they hide."""

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.faulty_registry import Reply, Request, faulty_registry
from support.registry_client import REPO, client, read, sequence, serve, without_environment

from hybrid.config import RegistryHost
from hybrid.core.proxies import Proxies, covers, parse_proxy
from hybrid.core.reference import RegistryReference
from hybrid.errors import AuthError, ConfigError, NetworkError

REMOTE = RegistryReference("reg.example.invalid", REPO)
PLAIN = {REMOTE.host: RegistryHost(plain_http=True)}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_environment(monkeypatch)


def used(url: str, **environ: str) -> str | None:
    proxy = Proxies(environ).proxy_for(httpx.URL(url))
    return proxy.name if proxy is not None else None


def test_which_variable_counts() -> None:
    both = {"http_proxy": "http://h:1", "HTTPS_PROXY": "https://u:p@s:2"}
    assert used("http://a.x", **both) == "h:1"
    assert used("https://a.x", **both) == "s:2"
    assert used("https://a.x", http_proxy="h:1") is None
    assert used("https://a.x", ALL_PROXY="a:3", http_proxy="h:1") == "a:3"
    assert used("http://a.x", HTTP_PROXY="upper:1", http_proxy="lower:1") == "lower:1"
    assert used("http://a.x", HTTP_PROXY="upper:1", http_proxy="") is None
    for local in ("http://127.0.0.1:5000", "http://localhost", "http://[::1]:1"):
        assert used(local, all_proxy="a:3") is None
    assert used("http://10.9.9.9", http_proxy="h:1", no_proxy="a.x, 10.0.0.0/8") is None
    assert used("http://11.9.9.9", http_proxy="h:1", no_proxy="a.x, 10.0.0.0/8") == "h:1"
    assert used("http://B.x", http_proxy="h:1", NO_PROXY="b.X") is None


@pytest.mark.parametrize(
    ("entry", "host", "port", "direct"),
    [
        ("*", "a.x", 443, True),
        ("a.x", "a.x", 443, True),
        ("a.x", "b.a.x", 443, True),
        ("a.x", "ba.x", 443, False),
        (".a.x", "b.a.x", 443, True),
        (".a.x", "a.x", 443, False),
        ("*.a.x", "b.a.x", 443, True),
        ("*.a.x", "a.x", 443, False),
        ("a.x:80", "a.x", 80, True),
        ("a.x:80", "a.x", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "10.x", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3:80", "10.1.2.3", 443, False),
        ("fe80::1", "fe80::1", 443, True),
        ("[fe80::1]", "fe80::1", 443, True),
        ("[fe80::1]:80", "fe80::1", 80, True),
        ("[fe80::1]:80", "fe80::1", 443, False),
        ("fe80::/16", "fe80::1", 443, True),
        ("::1/128", "a.x", 443, False),
        ("[::1]", "a.x", 443, False),
        ("", "a.x", 443, False),
        (".", "a.x", 443, False),
        ("*.", "a.x", 443, False),
        (":80", "a.x", 80, False),
        ("http://a.x", "a.x", 443, False),
    ],
)
def test_entries_of_no_proxy(entry: str, host: str, port: int, direct: bool) -> None:
    assert covers(entry, host, port) is direct


@given(st.text(alphabet="a.*:/[]10%-", max_size=12))
@examples(derandomize=True)
def test_any_entry_is_understood_or_ignored(entry: str) -> None:
    assert covers(entry, "reg.example.invalid", 443) is (entry == "*")


@pytest.mark.parametrize(
    "value",
    [
        "http://u:hun#ter2@127.0.0.1:1",
        "http://u:hun:ter2@h:abc",
        "http://u:hunter2@h:99999",
        "http://u:hunter2@h:0",
        "foo://u:hunter2@h",
        "http://u:hunter2@h/path",
        "http://u:hunter2@",
        "http://u:hunter2@[::1",
        "http://u:hunter2@xn--a",
    ],
)
def test_what_is_no_proxy_is_not_repeated(value: str) -> None:
    with pytest.raises(ConfigError, match="HTTP_PROXY") as caught:
        parse_proxy("HTTP_PROXY", value)
    assert "hun" not in str(caught.value)
    assert "hunter2" not in repr(parse_proxy("HTTP_PROXY", "http://u:hunter2@h:1"))


async def failing(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """What becomes of a read through such a proxy."""
    monkeypatch.setenv(variable, value)
    async with faulty_registry(serve) as unused:
        hosts = PLAIN if variable == "http_proxy" else {}
        registry, _ = client(unused, hosts=hosts, retry_seconds=0.3)
        async with registry:
            with pytest.raises((AuthError, ConfigError, NetworkError)) as caught:
                await read(registry, REMOTE)
    assert "hunter2" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy"])
async def test_a_proxy_that_is_down_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = await failing(variable, "http://u:hunter2@127.0.0.1:1", monkeypatch)
    assert "cannot connect to the proxy 127.0.0.1:1" in str(error)
    assert "tried" in str(error)


async def test_a_proxy_with_an_impossible_name(monkeypatch: pytest.MonkeyPatch) -> None:
    error = await failing("http_proxy", "http://u:hunter2@a..b:80", monkeypatch)
    assert "no host a..b" in str(error)


async def test_a_socks_proxy_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise ImportError("socksio")

    monkeypatch.setattr(httpx, "AsyncHTTPTransport", missing)
    error = await failing("all_proxy", "socks5://u:hunter2@127.0.0.1:1", monkeypatch)
    assert isinstance(error, ConfigError)
    assert "SOCKS" in str(error)


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [(503, NetworkError, 3), (429, NetworkError, 3), (407, AuthError, 1), (403, NetworkError, 1)],
)
async def test_connect_that_fails(
    status: int, error: type[Exception], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The third answer is final in any case.
    handler = sequence(Reply(status), Reply(status), Reply(403 if attempts == 3 else status))
    async with faulty_registry(handler) as proxy:
        monkeypatch.setenv("https_proxy", f"http://u:hunter2@{proxy.host}")
        registry, _ = client(proxy, hosts={})
        async with registry:
            with pytest.raises(error) as caught:
                await read(registry, REMOTE)
        assert [request.method for request in proxy.requests] == ["CONNECT"] * attempts
    assert f"by way of the proxy {proxy.host}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_no_proxy_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Request) -> Reply:
        return Reply(403)

    async with faulty_registry(refuse) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        monkeypatch.setenv("no_proxy", "[::1],*.invalid,::1/128")
        registry, _ = client(proxy, hosts=PLAIN)
        async with registry:
            with pytest.raises(NetworkError, match=r"no host reg\.example\.invalid"):
                await read(registry, REMOTE)
        assert proxy.requests == []
