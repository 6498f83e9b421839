"""Traces: that spans reach a collector with what the conventions name, and without a word of any prompt or answer."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")

from google._upb import _message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from daemon.accounts.ledger import Record, insert, open_for_writing
from daemon.accounts.traces import Traces
from daemon.config import ConfigError, Settings, Telemetry
from daemon.config_file import load
from tests.daemon.conftest import StartDaemon
from tests.daemon.harness import Daemon, client, reload, wait_until


@dataclass
class Collector:
    """Takes OTLP over HTTP."""

    url: str = ""
    status: int = 200
    """What it answers with."""
    bodies: list[bytes] = field(default_factory=list)
    """That it took."""

    @property
    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span
            for each in requests
            for one in each.resource_spans
            for scope in one.scope_spans
            for span in scope.spans
        ]

    @property
    def by_trace(self) -> dict[str, Span]:
        """In the order in which they came; one that was taken too late to be known as such has come twice."""
        return {span.trace_id.hex(): span for span in self.spans}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            self.send_response(collector.status if found else 404)
            self.end_headers()
            if found and collector.status == 200:
                collector.bodies.append(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def ask(daemon: Daemon) -> tuple[str, str]:
    """The request's id, and the answer's text."""
    answer = client(daemon).chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "Tell me of the albatross."}], max_tokens=8
    )
    return answer.headers["x-upcall-request-id"], answer.parse().choices[0].message.content or ""


def until_sending(daemon: Daemon) -> None:
    """Wait until the process that sends has taken note of where it starts from: then it loads protobuf."""
    protobuf = Path(_message.__file__).name

    def sends() -> bool:
        return any(
            protobuf in Path(f"/proc/{each.pid}/maps").read_text() for each in daemon.children("daemon.accounts.traces")
        )

    wait_until(sends)


def test_a_span_of_each_request_reaches_the_collector_without_a_word_and_the_last_one_before_the_daemon_ends(
    start_daemon: StartDaemon, collector: Collector
) -> None:
    daemon = start_daemon(TELEMETRY__OTLP_ENDPOINT=collector.url)
    wait_until(lambda: "traces" in daemon.call("GET", "/healthz")["memory_bytes"])
    until_sending(daemon)
    id, said = ask(daemon)
    wait_until(lambda: collector.spans)
    row = daemon.call("GET", f"/upcall/decisions/{id}")
    [(trace, span)] = collector.by_trace.items()
    seen = attributes(span)

    assert (trace, span.name, span.kind) == (id, "chat smollm2-135m", Span.SPAN_KIND_CLIENT)
    assert span.start_time_unix_nano == pytest.approx(row["time"] * 1e9)
    assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 == pytest.approx(row["total_ms"], abs=0.01)
    assert seen["gen_ai.operation.name"] == "chat"
    assert seen["gen_ai.provider.name"] == "llama.cpp"
    assert seen["gen_ai.request.model"] == seen["gen_ai.response.model"] == "smollm2-135m"
    assert seen["gen_ai.usage.input_tokens"] == row["prompt_tokens"]
    assert seen["gen_ai.usage.output_tokens"] == row["completion_tokens"]
    assert (seen["upcall.route"], seen["upcall.reason"]) == (row["route"], row["reason"])
    assert (seen.get("upcall.score"), seen.get("upcall.threshold")) == (row["score"], row["threshold"])
    assert "error.type" not in seen

    last, _ = ask(daemon)
    daemon.process.terminate()
    daemon.process.wait(60)
    assert list(collector.by_trace) == [id, last]
    sent = b"".join(collector.bodies)
    assert b"smollm2" in sent
    assert [word for word in ("albatross", *said.split()) if len(word) > 6 and word.encode() in sent] == []


def elsewhere(collector: Collector) -> str:
    """Its address as one that the kernel takes for this machine's, and upcall does not."""
    return collector.url.replace("127.0.0.1", "0.0.0.0")


def until_recorded(daemon: Daemon, id: str) -> None:
    wait_until(lambda: id in {row["id"] for row in daemon.call("GET", "/upcall/decisions")["decisions"]})


def test_what_waits_for_a_collector_is_sent_to_the_one_that_a_reload_names_unless_it_is_another_machine(
    start_daemon: StartDaemon, collector: Collector, tmp_path: Path
) -> None:
    telemetry = '[telemetry]\notlp_endpoint = "{}"\n'

    def send_to(endpoint: str) -> None:
        (before,) = daemon.children("daemon.accounts.traces")
        reload(daemon, tmp_path, telemetry.format(endpoint))
        before.wait(60)
        until_sending(daemon)

    (tmp_path / "config" / "upcall").mkdir(parents=True)
    (tmp_path / "config" / "upcall" / "config.toml").write_text(telemetry.format("http://127.0.0.1:9"))
    daemon = start_daemon()
    until_sending(daemon)
    waiting, _ = ask(daemon)
    wait_until(lambda: "traces wait to be sent" in (tmp_path / "log").read_text())
    send_to(collector.url)
    wait_until(lambda: waiting in collector.by_trace)

    # What waits for one on this machine, privacy mode may have kept here.
    send_to("http://127.0.0.1:9")
    kept, _ = ask(daemon)
    until_recorded(daemon, kept)
    send_to(elsewhere(collector))
    after, _ = ask(daemon)
    wait_until(lambda: after in collector.by_trace)
    assert list(collector.by_trace) == [waiting, after]


def test_nothing_that_privacy_mode_kept_here_is_sent_to_another_machine_afterwards(
    start_daemon: StartDaemon, collector: Collector
) -> None:
    daemon = start_daemon(TELEMETRY__OTLP_ENDPOINT=elsewhere(collector))
    until_sending(daemon)
    before, _ = ask(daemon)
    wait_until(lambda: before in collector.by_trace)

    daemon.call("PUT", "/upcall/privacy", {"on": True})
    wait_until(lambda: not daemon.children("daemon.accounts.traces"))
    kept, _ = ask(daemon)
    until_recorded(daemon, kept)

    daemon.call("PUT", "/upcall/privacy", {"on": False})
    until_sending(daemon)
    after, _ = ask(daemon)
    wait_until(lambda: after in collector.by_trace)
    assert list(collector.by_trace) == [before, after]


@pytest.mark.parametrize(
    ("endpoint", "here"),
    [
        *((f"http://{host}:4318", True) for host in ("127.0.0.1", "localhost", "[::1]")),
        *((f"https://{host}", False) for host in ("otel.example.org", "127.0.0.1.example.org:4318", "10.0.0.1")),
    ],
)
def test_only_loopback_counts_as_this_machine(endpoint: str, here: bool) -> None:
    assert Telemetry(otlp_endpoint=endpoint).is_loopback is here


def test_what_a_collector_does_not_take_is_sent_once_it_does(collector: Collector, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with closing(open_for_writing(ledger)) as connection:
        insert(connection, Record(id="01" * 16, time=1.0, wire="openai", outcome="ok"))
        traces = Traces(Settings(telemetry=Telemetry(otlp_endpoint=collector.url)), ledger)
        cloud = {"wire": "openai", "route": "cloud", "reason": "hard", "model": "gpt-4", "total_ms": 250.0}
        insert(connection, Record(id="ab" * 16, time=time.time(), outcome="upstream", error="upstream", **cloud))
    collector.status = 400
    assert not traces.send()
    collector.status = 200
    assert traces.send()
    assert traces.send()

    [span] = collector.spans
    seen = attributes(span)
    assert span.trace_id.hex() == "ab" * 16, "what was there before is not sent"
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert (seen["error.type"], seen["gen_ai.provider.name"], seen["gen_ai.request.model"]) == (
        "upstream", "openai", "gpt-4",
    )  # fmt: skip
    assert "gen_ai.response.model" not in seen


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('telemetry.otlp_endpoint = "127.0.0.1:4318"', "is no http or https URL"),
        ('telemetry.otlp_endpoint = "http://127.0.0.1:4318"\nledger.enabled = false', "traces are made of the ledger"),
        ('telemetry.oltp_endpoint = "http://127.0.0.1:4318"', "did you mean telemetry.otlp_endpoint"),
    ],
)
def test_a_mistake_in_the_settings_of_traces_says_what_to_do(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load(tmp_path / "config.toml")


def test_without_the_extra_the_settings_name_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[otel\]'"):
        Telemetry(otlp_endpoint="http://127.0.0.1:4318")
