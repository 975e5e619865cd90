"""Authentication towards registries: Basic, and Bearer tokens with their cache.

Anonymous first: what to do is learned from the 401 of the first request and kept per repository,
so that later requests carry their header at once. Tokens are cached until they expire.

Concurrency: one lock per token key makes token requests single-flight. Under it the cache is
looked at again, so a waiter uses what the first one got; a waiter that saw a failure happen while
it waited raises the same failure instead of asking again. Where a token came from is forgotten
when it cannot be renewed there: the registry is asked again, and may name another token server.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urlsplit

import httpx
import trio

from hybrid.core.challenge import Challenge
from hybrid.core.credentials import Credentials, Login
from hybrid.core.hosts import host_name, is_loopback
from hybrid.core.http_errors import status_error
from hybrid.core.reference import RegistryReference
from hybrid.core.request_body import BytesBody
from hybrid.core.retry import TransientError
from hybrid.core.transport import Transport
from hybrid.errors import AuthError, HybridError, NetworkError

CLIENT_ID = "hybrid"
DEFAULT_TOKEN_SECONDS = 60.0
MAX_TOKEN_SECONDS = 86400.0
MAX_TOKEN_ANSWER_BYTES = 1 << 20
MAX_SLOTS = 256
"""How many tokens are kept; a registry may name a new scope in each challenge."""
LOGIN_HINT = "log in with `docker login`, or check the credential file"


@dataclass(frozen=True)
class Access:
    """What a request wants to do in its repository: pull, or push as well.

    ``mount_from`` is another repository of the same registry that it takes a blob from.
    """

    push: bool = False
    mount_from: str = ""

    def scope(self, ref: RegistryReference) -> str:
        """As token servers call it."""
        own = f"repository:{ref.repository}:{'pull,push' if self.push else 'pull'}"
        return f"{own} repository:{self.mount_from}:pull" if self.mount_from else own


PULL = Access()
PUSH = Access(push=True)


@dataclass(frozen=True)
class TokenKey:
    """What a token is for. The host is part of it: other hosts may have other logins."""

    host: str
    tls: bool
    """Whether the registry was asked over TLS; then its token server must have it too."""
    realm: str
    service: str
    scope: str


@dataclass
class TokenSlot:
    """The current token of a key; times on trio's clock. ``lock`` is held to change it."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    token: str = ""
    expires: float = 0.0
    failure: HybridError | TransientError | None = None
    failed_at: float = 0.0

    @property
    def header(self) -> str:
        return f"Bearer {self.token}"

    def usable(self, stale: str | None) -> bool:
        """Whether there is a token that has not expired, and is not the one just refused."""
        return bool(self.token) and trio.current_time() < self.expires and self.header != stale


class Authenticator:
    """Finds the Authorization header for requests to a repository."""

    def __init__(self, transport: Transport, credentials: Credentials) -> None:
        self._transport = transport
        self._credentials = credentials
        self._basic: dict[str, str] = {}
        self._bearer: dict[tuple[str, Access], TokenKey] = {}
        self._slots: dict[TokenKey, TokenSlot] = {}

    async def authorization(self, ref: RegistryReference, access: Access = PULL) -> str | None:
        """The header as far as it is known without a challenge; an expired token is renewed."""
        key = self._bearer.get((ref.name, access))
        if key is None:
            return self._basic.get(ref.name)
        try:
            header, _ = await self._token_header(key, ref, stale=None)
        except trio.Cancelled:
            # Maybe that server was silent until the time was up: the next one asks the registry.
            self._forget(ref, access, key)
            raise
        except (TransientError, HybridError):
            # An anonymous request learns where tokens come from now.
            self._forget(ref, access, key)
            return None
        return header

    def _forget(self, ref: RegistryReference, access: Access, key: TokenKey) -> None:
        if self._bearer.get((ref.name, access)) == key:
            del self._bearer[ref.name, access]

    async def answer(
        self,
        ref: RegistryReference,
        challenges: Sequence[Challenge],
        sent: str | None,
        tls: bool,
        access: Access = PULL,
    ) -> tuple[str, bool]:
        """(header to try after a 401 to a request that carried ``sent``, whether it is the last).

        Raises AuthError if there is nothing (else) to try. Call it without holding the response:
        it may need a connection.
        """
        chosen = choose(challenges)
        if chosen is None:
            offered = ", ".join(c.scheme for c in challenges)[:80] or "nothing"
            raise AuthError(f"{ref.host} wants a login but offers {offered}, not Basic or Bearer")
        if chosen.scheme == "basic":
            return await self._basic_header(ref, access, sent), False
        scope = chosen.parameters.get("scope", "")
        key = TokenKey(
            ref.api_host,
            tls,
            chosen.parameters["realm"],
            chosen.parameters.get("service", ""),
            joined_scopes(scope, access.scope(ref)) if access.push or not scope else scope,
        )
        answer = await self._token_header(key, ref, stale=sent)
        if len(self._bearer) >= MAX_SLOTS:
            self._bearer.clear()
        self._bearer[ref.name, access] = key
        self._basic.pop(ref.name, None)
        return answer

    async def _basic_header(self, ref: RegistryReference, access: Access, sent: str | None) -> str:
        login = await self._credentials.lookup(ref.host, ref.repository)
        if login is None or not login.username:
            raise AuthError(f"{ref.name} needs a login, and none was found", hint=LOGIN_HINT)
        header = basic(login)
        if header == sent:
            raise AuthError(f"{ref.host} refuses the login of {login.username!r}", hint=LOGIN_HINT)
        self._basic[ref.name] = header
        self._bearer.pop((ref.name, access), None)
        return header

    def _slot(self, key: TokenKey) -> TokenSlot:
        if key not in self._slots:
            if len(self._slots) >= MAX_SLOTS:
                self._slots = {k: s for k, s in self._slots.items() if s.lock.locked()}
            self._slots[key] = TokenSlot()
        return self._slots[key]

    async def _token_header(
        self, key: TokenKey, ref: RegistryReference, stale: str | None
    ) -> tuple[str, bool]:
        """(a Bearer header that is not ``stale``, whether its token was fetched just now)."""
        slot = self._slot(key)
        asked_at = trio.current_time()
        if slot.usable(stale):
            return slot.header, False
        async with slot.lock:
            if slot.usable(stale):
                return slot.header, False
            if slot.failure is not None and slot.failed_at > asked_at:
                raise copy_of(slot.failure)
            sent_at = trio.current_time()
            try:
                slot.token, seconds = await self._fetch_token(key, ref)
            except (TransientError, HybridError) as error:
                slot.failure, slot.failed_at = copy_of(error), trio.current_time()
                raise
            slot.expires = sent_at + usable_seconds(seconds)
            # A token that expires at once still serves the request it was fetched for.
            return slot.header, True

    async def _fetch_token(self, key: TokenKey, ref: RegistryReference) -> tuple[str, float]:
        login = await self._credentials.lookup(ref.host, ref.repository)
        check_realm(key, ref, login)
        fields = {"service": key.service} if key.service else {}
        headers = {"Accept": "application/json"}
        if login is not None and login.identity_token:
            method, url = "POST", key.realm
            form = {"grant_type": "refresh_token", "refresh_token": login.identity_token}
            form |= {"client_id": CLIENT_ID, "scope": key.scope, **fields}
            content = urlencode(form).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            method, url, content = "GET", token_url(key, fields), None
            if login is not None:
                headers["Authorization"] = basic(login)
        body = BytesBody(content) if content is not None else None
        async with self._transport.exchange(
            method, url, headers, registry=key.host, body=body
        ) as response:
            if response.status_code != 200:
                raise await token_error(response, ref, login)
            data = await self._transport.read_body(response, MAX_TOKEN_ANSWER_BYTES)
        return parse_token(data, response.url.host)


def copy_of(failure: HybridError | TransientError) -> HybridError | TransientError:
    """The same failure for another task, which may add to it."""
    if isinstance(failure, TransientError):
        return TransientError(failure.error, failure.retry_after)
    return type(failure)(failure.message, hint=failure.hint)


def choose(challenges: Sequence[Challenge]) -> Challenge | None:
    """The challenge to answer: Bearer (with a realm) before Basic, whatever their order."""
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
            return challenge
    return next((c for c in challenges if c.scheme == "basic"), None)


def joined_scopes(asked: str, wanted: str) -> str:
    """What the registry asks for, and what of ``wanted`` is not in it.

    The challenge to a request that only looks asks for less than the push behind it needs. The
    actions are sorted: registries name them in any order, and one token serves for all of them.
    """
    actions: dict[str, list[str]] = {}
    for scope in (*asked.split(), *wanted.split()):
        name, _, found = scope.rpartition(":")
        known = actions.setdefault(name, [])
        known += [action for action in found.split(",") if action not in known]
    return " ".join(
        ":".join(filter(None, (name, ",".join(sorted(found))))) for name, found in actions.items()
    )


def basic(login: Login) -> str:
    """The Basic header of a login."""
    text = f"{login.username}:{login.password}".encode()
    return f"Basic {base64.b64encode(text).decode()}"


def token_url(key: TokenKey, fields: dict[str, str]) -> str:
    """The URL to GET a token from; several scopes become several parameters."""
    pairs = [*fields.items(), *(("scope", scope) for scope in key.scope.split())]
    realm = key.realm.partition("#")[0]
    return f"{realm}{'&' if '?' in realm else '?'}{urlencode(pairs, quote_via=quote, safe='')}"


def check_realm(key: TokenKey, ref: RegistryReference, login: Login | None) -> None:
    """Refuse to send a secret over plain HTTP because a registry with TLS said so."""
    try:
        parts = urlsplit(key.realm)
        name = parts.hostname or ""
        usable = parts.scheme in ("http", "https") and name != "" and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise AuthError(f"{ref.host} names a token server that is no URL: {key.realm[:100]!r}")
    private = is_loopback(name) and is_loopback(host_name(ref.host))
    if login is not None and key.tls and parts.scheme == "http" and not private:
        raise AuthError(
            f"{ref.host} has TLS, but its token server {name} has not",
            hint="the login is not sent in the clear; tell the registry's operator",
        )


async def token_error(
    response: httpx.Response, ref: RegistryReference, login: Login | None
) -> Exception:
    """The error for a token server that gives no token; 5xx and the like may pass."""
    who = "anonymous access" if login is None else f"the login of {login.username or 'a token'!r}"
    what = f"no token for {ref.name} with {who}"
    error = await status_error(response, what)
    if response.status_code in (400, 401, 403):
        return AuthError(str(getattr(error, "message", error)), hint=LOGIN_HINT)
    return error


def parse_token(data: bytes, host: str) -> tuple[str, float]:
    """(token, lifetime in seconds) from the answer of a token server."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        raise NetworkError(f"token server {host} does not answer in JSON") from None
    fields = answer if isinstance(answer, dict) else {}
    token = fields.get("token") or fields.get("access_token")
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise NetworkError(f"token server {host} answers without a usable token")
    seconds = fields.get("expires_in")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        seconds = DEFAULT_TOKEN_SECONDS
    return token, float(min(seconds, MAX_TOKEN_SECONDS))


def usable_seconds(lifetime_seconds: float) -> float:
    """How long to use a token: a tenth (at most 10 s) less, for slow clocks and slow networks."""
    return lifetime_seconds - min(10.0, lifetime_seconds / 10)
