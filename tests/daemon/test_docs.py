"""What the documentation promises of a daemon."""

import json
import re
from http.client import HTTPConnection
from pathlib import Path

from daemon.api.openapi import document
from daemon.api.wish import WISHES
from tests.daemon.harness import Daemon, client

DOCS = Path(__file__).parents[2] / "docs"
ROOMS = [DOCS.parent / room for room in ("daemon", "models", "routers")]


def test_the_metrics_page_and_the_grafana_dashboard_name_what_is_served(upcall: Daemon) -> None:
    client(upcall).chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "Say hello."}], max_tokens=4
    )
    connection = HTTPConnection("127.0.0.1", upcall.server.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    # Made when a first sample comes, which the page need not name.
    served = {name for name in re.findall(r"^(upcall_\w+)", text, re.MULTILINE) if not name.endswith("_created")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in served}
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queried = {name for panel in dashboard["panels"] for each in panel["targets"] for name in _names(each["expr"])}

    assert queried
    assert queried <= served
    assert _names((DOCS / "metrics.md").read_text()) == families


def _names(text: str) -> set[str]:
    return set(re.findall(r"\bupcall_\w+", text))


def test_troubleshooting_has_every_check_of_doctor_and_quotes_what_is_said() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    checks = set(re.findall(r'Finding\(\s*"([^"]+)"', (ROOMS[0] / "doctor.py").read_text()))
    listed = set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))
    code = "".join(file.read_text() for room in ROOMS for file in room.rglob("*.py"))
    # Names that a message fills in are left out of a quotation.
    quoted = re.findall(r'"([^"]{12,}?)"', re.sub(r"`[^`|]*\"[^`|]*`", "", page))

    assert checks == listed
    assert quoted
    assert [sentence for sentence in quoted if sentence not in code] == []


def test_the_http_page_lists_every_header_that_a_request_may_carry() -> None:
    listed = re.findall(r"^\| `(x-upcall-[\w-]+)` \|", (DOCS / "http.md").read_text(), re.MULTILINE)

    assert set(listed) == set(WISHES)


def test_the_http_page_lists_every_path_of_the_openapi_document() -> None:
    page = (DOCS / "http.md").read_text()

    assert [path for path in document()["paths"] if f"{path}`" not in page] == []
