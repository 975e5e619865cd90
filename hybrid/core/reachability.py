"""Whether a registry answers: one request for its base, without a login, bounded in time.

OCI distribution spec: GET /v2/ gives 200, or 401 where a login is needed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus

import trio

from hybrid.config import GlobalConfig
from hybrid.core.http_errors import status_error
from hybrid.core.reference import RegistryReference, api_host, parse_image
from hybrid.core.registry_settings import RegistrySettings
from hybrid.core.remote import settings_of
from hybrid.core.retry import TransientError
from hybrid.core.transport import Transport
from hybrid.errors import HybridError, NetworkError, UsageError

_ANSWERS: dict[int, str] = {
    HTTPStatus.OK: "answers",
    HTTPStatus.UNAUTHORIZED: "answers, and wants a login",
}


def check_host(text: str) -> str:
    """The registry ``HOST`` or ``HOST:PORT`` as images name it. Raises UsageError."""
    named = ("." in text or ":" in text or text == "localhost") and "/" not in text
    try:
        reference = parse_image(f"{text}/x") if named else None
    except UsageError:
        reference = None
    if not isinstance(reference, RegistryReference):
        hint = "write HOST or HOST:PORT; in images it has a dot or a port, or is localhost"
        raise UsageError(f"{text!r} is no registry", hint=hint)
    return reference.host


async def ask_registries(
    config: GlobalConfig, hosts: Sequence[str], seconds: float
) -> list[str | HybridError]:
    """For each host what it answers, or why it does not; all at once, within ``seconds``.

    Nothing is tried twice. Raises ConfigError for settings that cannot be used.
    """
    settings = settings_of(config, "")
    settings = replace(
        settings,
        connect_seconds=min(settings.connect_seconds, seconds),
        read_seconds=min(settings.read_seconds, seconds),
    )
    answers: list[str | HybridError] = [
        NetworkError(f"{host}: no answer within {seconds:g} s") for host in hosts
    ]

    async def ask_into(number: int) -> None:
        try:
            answers[number] = await _ask(hosts[number], settings)
        except HybridError as error:
            answers[number] = error
        except TransientError as failure:
            answers[number] = failure.error

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for number in range(len(hosts)):
                nursery.start_soon(ask_into, number)
    return answers


async def _ask(host: str, settings: RegistrySettings) -> str:
    async with (
        Transport(settings) as transport,
        transport.registry_exchange("GET", api_host(host), "/v2/", {}, None) as response,
    ):
        answer = _ANSWERS.get(response.status_code)
        if answer is None:
            raise await status_error(response, f"registry {host}")
        return f"{host} {answer}"
