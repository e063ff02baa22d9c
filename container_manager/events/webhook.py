"""Events as signed HTTP requests to one receiver, in order, one event in each.

What becomes of an event is decided by what the receiver answers:

- 2xx: it is taken, the next one is sent.
- 400, 409, 413, 422 and what else from 400 to 499 is not named below: the event is refused. It is
  tried again, `max_tries` times in all, then it is a dead letter and the others go on.
- 401, 403, 404, 405, 407, 408, 410, 421, 423 to 426, 428, 429, 451, all 3xx (redirects are not
  followed) and all 5xx but 500; nobody there, no such name, an address out of reach, a bad
  certificate: the receiver takes nothing at all. Everything waits, in order, however long it takes.
- 500, no whole answer in time, a connection that is cut: that may be the event's fault or the
  receiver's. Everything waits; after `max_tries` the next event is offered, too. If that one is
  taken, it was the event, which is a dead letter then; else it is the receiver, and all go on
  waiting.

Retry-After is honoured, up to an hour.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, NoReturn

from container_manager import __version__
from container_manager.events.addresses import Reach, read_url
from container_manager.events.base import (
    Filter,
    Publisher,
    Refused,
    TransitionEvent,
    Unavailable,
)
from container_manager.events.posting import (
    Answer,
    Poster,
    Unanswered,
    Unreached,
    client_tls,
)
from container_manager.events.signatures import (
    SignatureError,
    Signer,
    new_secret,
    read_secrets,
    verify,
)

__all__ = ["SignatureError", "WebhookPublisher", "new_secret", "verify"]

LONGEST_WAIT = 3600.0
"""The most that a receiver's Retry-After is honoured, in seconds."""
LONGEST_TIMEOUT = 60.0
SLICE_SECONDS = 1.0
"""After so long what was delivered is told to who asked."""

OF_THE_RECEIVER = frozenset(
    (401, 403, 404, 405, 407, 408, 410, 421, 423, 424, 425, 426, 428, 429, 451)
)
"""Answers from 400 to 499 that say nothing about the one event that was sent."""
UNCLEAR = frozenset((500,))


class _NotTaken(Exception):
    """This event was not taken. As it stands: nobody was reached."""

    def __init__(self, message: str, answer: Answer | None = None) -> None:
        super().__init__(message)
        self.status = answer.status if answer else None
        self.wait = None
        if answer is not None and answer.retry_after is not None:
            self.wait = min(answer.retry_after, LONGEST_WAIT)


class _OfTheEvent(_NotTaken):
    """The receiver was there and did not want this one."""


class _Unclear(_NotTaken):
    """It may be the event, it may be the receiver."""


@dataclass
class _Doubt:
    """How often in a row one event failed for what may be its own fault."""

    event_id: Any = None
    tries: int = 0

    def count(self, event: TransitionEvent) -> int:
        self.tries = self.tries + 1 if self.event_id == event.id else 1
        self.event_id = event.id
        return self.tries


class WebhookPublisher(Publisher):
    """Sends each event that it wants to `url`, signed with `secret`.

    `timeout`: seconds for one whole exchange. `allowed_networks`: networks of your own that may be
    reached beside the internet. `ca_file`: the only authorities that are trusted with a
    certificate. `proxy`: everything goes through this one, which then judges the addresses.
    `entity_types`, `states`: send only events of these, and into these; empty: all.
    """

    def __init__(
        self,
        url: str,
        secret: str | Sequence[str],
        *,
        timeout: float = 10.0,
        allowed_networks: str | Iterable[str] = (),
        ca_file: str | None = None,
        proxy: str | None = None,
        entity_types: Iterable[str] = (),
        states: Iterable[str] = (),
        max_tries: int = 10,
    ) -> None:
        options = {
            **{"url": url, "secret": secret, "timeout": timeout, "proxy": proxy},
            **{"allowed_networks": allowed_networks, "ca_file": ca_file},
            **{"entity_types": entity_types, "states": states, "max_tries": max_tries},
        }
        if problems := self.problems(options):
            raise ValueError("; ".join(problems))
        target, reach = read_url(url), Reach.read(allowed_networks)
        self.max_tries = max_tries
        self._origin = target.origin
        self._signer = Signer(secret)
        self._filter = Filter.of(entity_types, states)
        self._poster = Poster(
            target,
            reach,
            timeout=timeout,
            tls=client_tls(ca_file),
            proxy=None if proxy is None else read_url(proxy),
        )
        self._doubt = _Doubt()

    def __repr__(self) -> str:
        return f"<WebhookPublisher to {self._origin}>"

    @classmethod
    def problems(cls, options: Mapping[str, Any]) -> list[str]:
        """One line for each mistake, beginning with the option's name; no network is asked.

        No line repeats a secret, nor of the URL what follows its host.
        """
        unknown = [f"{name}: no such option" for name in options if name not in _OPTIONS]
        missing = [f"{name}: is missing" for name in _REQUIRED if name not in options]
        found = [
            f"{name}: {problem}"
            for name, check in _OPTIONS.items()
            if name in options and (problem := _problem(check, options[name]))
        ]
        return unknown + missing + (found or _across(options, missing))

    def publish(self, events: Sequence[TransitionEvent]) -> int | None:
        """In order; raises Unavailable or Refused at the first that is not taken.

        Returns early, so that what was delivered is known even where each takes long.
        """
        ends_at = monotonic() + SLICE_SECONDS
        for number, event in enumerate(events):
            if not self._filter.wants(event):
                continue
            if number and monotonic() > ends_at:
                return number
            try:
                self._send(event)
            except _OfTheEvent as why:
                raise Refused(str(why), delivered=number) from why
            except _Unclear as why:
                self._judge(why, events, number)
            except _NotTaken as why:
                raise Unavailable(str(why), delivered=number, retry_after=why.wait) from why
        return None

    def close(self) -> None:
        self._poster.close()

    def _judge(self, why: _Unclear, events: Sequence[TransitionEvent], number: int) -> NoReturn:
        """Raises: this event is dead if the next one is taken; else the receiver is away."""
        away = Unavailable(str(why), delivered=number, retry_after=why.wait)
        tries = self._doubt.count(events[number])
        following = next(filter(self._filter.wants, events[number + 1 :]), None)
        if tries < self.max_tries or following is None:
            raise away from why
        try:
            self._send(following)
        except _NotTaken:
            raise away from why
        told = f"{why}, {tries} times, and the next event was taken"
        raise Refused(told, delivered=number, tries=tries) from why

    def _send(self, event: TransitionEvent) -> None:
        """Raises _NotTaken."""
        body = json.dumps(event.as_json(), separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "user-agent": f"container-manager/{__version__}",
            "webhook-sequence": str(event.sequence),
            **self._signer.headers(str(event.id), int(time()), body),
        }
        try:
            answer = self._poster.post(body, headers)
        except Unreached as error:
            raise _NotTaken(str(error)) from error
        except Unanswered as error:
            raise _Unclear(f"{self._origin}: {error}") from error
        if not 200 <= answer.status < 300:
            raise self._refusal(answer)

    def _refusal(self, answer: Answer) -> _NotTaken:
        status = answer.status
        told = f"{self._origin} answered {status}{_MEANING.get(status, '')}"
        if 300 <= status < 400:
            return _NotTaken(f"{told}: redirects are not followed, give the URL they lead to")
        if status in UNCLEAR or status < 200 or status > 599:
            return _Unclear(told, answer)
        if status < 500 and status not in OF_THE_RECEIVER:
            return _OfTheEvent(told, answer)
        return _NotTaken(told, answer)


_MEANING = {
    401: ": it does not accept the signature",
    403: ": it does not let us in",
    404: ": there is nothing at this URL",
    410: ": it wants no more events, so take it out of PUBLISHERS",
    413: ": the event is too large for it",
    429: ": it asks for less",
}


# What options may be -----------------------------------------------------------------------------


def _problem(check: Callable[[Any], object], value: Any) -> str:
    try:
        check(value)
    except ValueError as error:
        return str(error)
    return ""


def _check_timeout(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number of seconds")
    if not 0 < value <= LONGEST_TIMEOUT:
        raise ValueError(f"must be more than 0 and at most {LONGEST_TIMEOUT:g} seconds")


def _check_ca_file(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value:
        raise ValueError("must be the path of a file")
    try:
        client_tls(value)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{value!r} holds no certificates: {error.strerror}") from error


def _check_proxy(value: Any) -> None:
    if value is not None and read_url(value).scheme != "http":
        raise ValueError("must begin with http://")


def _check_tries(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number, 1 or more")


def _check_entity_types(value: Any) -> None:
    Filter.of(entity_types=_words(value))


def _check_states(value: Any) -> None:
    Filter.of(states=_words(value))


def _words(value: Any) -> list[str]:
    listed = not isinstance(value, str) and isinstance(value, Iterable)
    if not listed or not all(isinstance(word, str) for word in value):
        raise ValueError("must be a list of words")
    return list(value)


_OPTIONS: dict[str, Callable[[Any], object]] = {
    "url": read_url,
    "secret": read_secrets,
    "timeout": _check_timeout,
    "allowed_networks": Reach.read,
    "ca_file": _check_ca_file,
    "proxy": _check_proxy,
    "entity_types": _check_entity_types,
    "states": _check_states,
    "max_tries": _check_tries,
}
_REQUIRED = ("url", "secret")


def _across(options: Mapping[str, Any], missing: Sequence[str]) -> list[str]:
    """What is wrong about options that are good one by one."""
    if missing:
        return []
    reach = Reach.read(options.get("allowed_networks", ()))
    chosen = (options.get("entity_types", ()), options.get("states", ()))
    found = {
        "url": _problem(reach.check, read_url(options["url"])),
        "states": _problem(lambda given: Filter.of(*given), chosen),
    }
    return [f"{name}: {problem}" for name, problem in found.items() if problem]
