"""What the web server does beside the views: static files, small addresses, large bodies."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from config.bodies import MOST_BYTES
from tests.support.web import Site, some_site
from tests.support.workers import ROOT, Workers

pytestmark = [pytest.mark.web, pytest.mark.sqlite]  # what is served does not ask a database

PRODUCTION = {
    "DEBUG": "off",
    "SECRET_KEY": "only-for-this-test-0123456789-abcdefghijklmnopqrstuvwxyz",
    "SECURE": "off",
}
STYLE = re.compile(r'href="(/static/[^"]+\.css)"')


def get(site: Site, path: str, **more: object) -> requests.Response:
    return requests.get(f"{site.url}{path}", timeout=60, allow_redirects=False, **more)


def styles(site: Site) -> list[str]:
    """The style sheets that the page of the login names."""
    return STYLE.findall(get(site, "/admin/login/").text)


@pytest.fixture
def production(workers: Workers, tmp_path: Path) -> Iterator[Site]:
    """A site as docs/deployment.md makes it, but for HTTPS."""
    given = {**PRODUCTION, "STATIC_ROOT": str(tmp_path / "static")}
    subprocess.run(
        [sys.executable, "-W", "error", "manage.py", "collectstatic", "--no-input", "-v0"],
        cwd=ROOT,
        env={**workers.environment(), **given},
        check=True,
    )
    with some_site(tmp_path, workers, **given) as site:
        yield site


def test_under_debug_static_files_need_no_step(live_site: Site) -> None:
    assert styles(live_site)
    for path in styles(live_site):
        answer = get(live_site, path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (
            200,
            'text/css; charset="utf-8"',
        )
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_part_of_a_static_file_can_be_asked_for(live_site: Site) -> None:
    path = "/static/container_manager/favicon.svg"
    answer = get(live_site, path, headers={"Range": "bytes=0-3"})
    assert (answer.status_code, answer.content) == (206, b"<svg")
    again = get(live_site, path, headers={"If-None-Match": get(live_site, path).headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = requests.head(f"{live_site.url}{path}", timeout=60)
    assert int(head.headers["Content-Length"]) > 100


def test_the_root_and_the_icon_lead_somewhere(live_site: Site) -> None:
    assert get(live_site, "/").headers["Location"] == "/admin/"
    icon = get(live_site, get(live_site, "/favicon.ico").headers["Location"])
    assert icon.headers["Content-Type"] == "image/svg+xml"


def test_in_production_static_files_are_kept_for_ever_and_sent_small(production: Site) -> None:
    assert styles(production)
    for path in styles(production):
        assert re.search(r"\.[0-9a-f]{12}\.css$", path)
        answer = get(production, path)
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["Content-Encoding"] == "gzip"


def test_in_production_a_page_that_is_not_there_tells_nothing_about_us(production: Site) -> None:
    answer = get(production, "/nonesuch/")
    assert answer.status_code == 404
    assert "urlpatterns" not in answer.text
    assert "config" not in answer.text


def test_another_host_is_refused_and_does_not_fill_the_log(production: Site) -> None:
    assert get(production, "/health", headers={"Host": "evil.example.org"}).status_code == 400
    assert "evil" not in production.said


def test_a_body_without_an_end_is_refused_before_it_fills_a_disk(live_site: Site) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2 * MOST_BYTES // 65536):
            yield bytes(65536)

    url = f"{live_site.url}/admin/login/"
    refusals = []
    for body in (endless(), bytes(MOST_BYTES + 1)):
        try:
            refusals.append(requests.post(url, data=body, timeout=60).status_code)
        except requests.ConnectionError:  # it hung up while we were still sending
            refusals.append(413)
    assert refusals == [413, 413]
    assert get(live_site, "/admin/login/").status_code == 200
