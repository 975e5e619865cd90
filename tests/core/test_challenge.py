"""WWW-Authenticate in all the forms that registries send, and in those that they should not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.core.auth import TokenKey, choose, joined_scopes, parse_token, token_url, usable_seconds
from hybrid.core.challenge import Challenge, parse_challenges
from hybrid.errors import NetworkError

REALM = "https://auth.x/token"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="a, b"', [("basic", {"realm": "a, b"})]),
        (
            f'BEARER Realm="{REALM}",SERVICE="s",scope="repository:a/b:pull,push"',
            [("bearer", {"realm": REALM, "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (f"Bearer realm={REALM} , service=s", [("bearer", {"realm": REALM, "service": "s"})]),
        ('Bearer realm = "x" scope="y"', [("bearer", {"realm": "x", "scope": "y"})]),
        (r'Bearer realm="a\"b\\c"', [("bearer", {"realm": 'a"b\\c'})]),
        ('Bearer realm="unterminated, x=y', [("bearer", {"realm": "unterminated, x=y"})]),
        ('Bearer realm="a", realm="b"', [("bearer", {"realm": "a"})]),
        (
            'Negotiate, Basic realm="x", Bearer realm="y"',
            [("negotiate", {}), ("basic", {"realm": "x"}), ("bearer", {"realm": "y"})],
        ),
        ("Basic", [("basic", {})]),
        ("", []),
        (" , ;;", []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges([header]) == [Challenge(*one) for one in expected]


def test_several_headers_are_one_list() -> None:
    found = parse_challenges(['Basic realm="x"', 'Bearer realm="y"'])
    assert [challenge.scheme for challenge in found] == ["basic", "bearer"]


@given(st.text(alphabet='Basic Bearer=",\\;\x00é', max_size=200))
@settings(derandomize=True)
def test_any_header_is_parsed(header: str) -> None:
    for challenge in parse_challenges([header]):
        assert challenge.scheme == challenge.scheme.lower() != ""


def test_a_hostile_header_takes_no_time() -> None:
    # Quadratic or worse behaviour would show as a hanging test.
    assert len(parse_challenges(['Bearer x="' + "\\" * 60_000])) == 1
    assert len(parse_challenges(["a" * 60_000])) == 1


def test_bearer_goes_before_basic_and_needs_a_realm() -> None:
    def chosen(header: str) -> str | None:
        challenge = choose(parse_challenges([header]))
        return challenge.scheme if challenge else None

    assert chosen('Basic realm="x", Bearer realm="y"') == "bearer"
    assert chosen('Bearer service="y", Basic realm="x"') == "basic"
    assert chosen('Bearer service="y"') is None
    assert chosen("Negotiate") is None


def test_token_urls_are_escaped() -> None:
    def url(realm: str, service: str, scope: str) -> str:
        fields = {"service": service} if service else {}
        return token_url(TokenKey("h", True, realm, service, scope), fields)

    scope = "repository:a/b:pull,push"
    escaped = "repository%3Aa%2Fb%3Apull%2Cpush"
    assert url(REALM, "a b&c", scope) == f"{REALM}?service=a%20b%26c&scope={escaped}"
    assert url(f"{REALM}?x=1#frag", "", scope) == f"{REALM}?x=1&scope={escaped}"
    assert url(REALM, "s", "one two") == f"{REALM}?service=s&scope=one&scope=two"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b'{"token": "t"}', ("t", 60.0)),
        (b'{"access_token": "a", "expires_in": 300}', ("a", 300.0)),
        (b'{"token": "t", "access_token": "a", "expires_in": 1.5}', ("t", 1.5)),
        (b'{"token": "t", "expires_in": 0}', ("t", 60.0)),
        (b'{"token": "t", "expires_in": "soon"}', ("t", 60.0)),
        (b'{"token": "t", "expires_in": true}', ("t", 60.0)),
        (b'{"token": "t", "expires_in": NaN}', ("t", 60.0)),
        (b'{"token": "t", "expires_in": 1e300}', ("t", 86400.0)),
        (b'{"token": "t", "expires_in": 1' + b"0" * 400 + b"}", ("t", 86400.0)),
    ],
)
def test_tokens(answer: bytes, expected: tuple[str, float]) -> None:
    assert parse_token(answer, "auth.x") == expected


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\r\\nb"}', b'{"token": ""}', b"\xff"],
)
def test_answers_without_a_token(answer: bytes) -> None:
    with pytest.raises(NetworkError, match=r"auth\.x"):
        parse_token(answer, "auth.x")


def test_tokens_are_not_used_to_the_last_second() -> None:
    assert usable_seconds(300) == 290
    assert usable_seconds(60) == 54
    assert usable_seconds(1) == pytest.approx(0.9)


# -- scopes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "wanted", "joined"),
    [
        ("", "repository:a/b:pull,push", "repository:a/b:pull,push"),
        ("repository:a/b:push,pull", "repository:a/b:pull,push", "repository:a/b:pull,push"),
        ("repository:a/b:pull", "repository:a/b:pull,push", "repository:a/b:pull,push"),
        (
            "repository:h:5000/a:pull registry:catalog:*",
            "repository:h:5000/a:pull,push repository:c/d:pull",
            "repository:h:5000/a:pull,push registry:catalog:* repository:c/d:pull",
        ),
        ("nonsense", "repository:a:pull", "nonsense repository:a:pull"),
    ],
)
def test_scopes_are_joined(asked: str, wanted: str, joined: str) -> None:
    assert joined_scopes(asked, wanted) == joined
