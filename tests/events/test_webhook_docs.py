"""What docs/webhooks.md shows is run as it stands there."""

from __future__ import annotations

import re
import time
from inspect import signature
from typing import Any

import pytest

from container_manager.events.webhook import WebhookPublisher, new_secret
from tests.events.test_webhook import event
from tests.support.receiver import Receiver
from tests.support.workers import ROOT

PAGE = (ROOT / "docs/webhooks.md").read_text()
SETTINGS, EXAMPLE = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def namespace(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the page's own
    return names


def test_ten_lines_verify_what_a_publisher_sent() -> None:
    event_of = namespace(EXAMPLE)["event_of"]
    secret, old = new_secret(), new_secret()
    sent = event(5)
    with Receiver() as receiver:
        options = {"secret": f"{secret} {old}", "allowed_networks": ["127.0.0.1"]}
        publisher = WebhookPublisher(receiver.url, **options)
        publisher.publish([sent])
        publisher.close()
    request = receiver.requests[0]
    for each in (secret, old):
        assert event_of(request.headers, request.body, each) == sent.as_json()
    with pytest.raises(PermissionError):
        event_of(request.headers, request.body, new_secret())
    with pytest.raises(PermissionError):
        event_of(request.headers, request.body + b" ", secret)
    late = {**request.headers, "webhook-timestamp": str(int(time.time()) - 400)}
    with pytest.raises(PermissionError):
        event_of(late, request.body, secret)


def test_the_shown_settings_are_good_but_for_the_secret() -> None:
    publishers = namespace(SETTINGS)["CONTAINER_MANAGER"]["PUBLISHERS"]
    options = publishers["ours"]["options"]
    assert WebhookPublisher.problems(options | {"secret": new_secret()}) == []
    assert [line.partition(":")[0] for line in WebhookPublisher.problems(options)] == ["secret"]


def test_every_option_is_told() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(
        signature(WebhookPublisher).parameters
    )


def test_the_shown_request_has_the_headers_of_a_real_one() -> None:
    with Receiver() as receiver:
        publisher = WebhookPublisher(receiver.url, new_secret(), allowed_networks=["127.0.0.1"])
        publisher.publish([event(5)])
        publisher.close()
    sent = set(receiver.requests[0].headers)
    (shown,) = re.findall(r"^```http\n(.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)
    named = {line.partition(":")[0].lower() for line in shown.splitlines()[1:]}
    assert named <= sent
    assert sent - named == {"accept-encoding", "content-length", "user-agent"}
