"""What reports say of publishers."""

from __future__ import annotations

import re

from container_manager.reports.publishers import PublisherWord
from tests.support.workers import ROOT


def test_every_state_of_a_publisher_is_told_in_its_own_words() -> None:
    page = (ROOT / "docs/admin.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert told == {str(word): word.meaning for word in PublisherWord}
