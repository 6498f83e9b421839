"""The process that sends traces: `python -m daemon.accounts.traces LINE [SENT]`, with the settings on standard input.

The gateway sees prompts and so cannot connect. This process can, and sees none: it reads what the ledger has of each
finished request, and makes a span of that by OpenTelemetry's conventions
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/). It ends when LINE, an inherited socket, is closed.
SENT is the ledger's number of the last request that needs no span; the number of each later one that has been sent is
printed, for the process after this one.
"""

import logging
import select
import signal
import socket
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import resolve
from daemon.accounts.history import opened
from daemon.accounts.ledger import LedgerError, Record, default_path
from daemon.config import Settings
from daemon.logs import set_up_logging

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
REST_SECONDS = 15.0
"""How long a collector that did not take spans is left alone; they wait in the ledger."""
SEND_SECONDS = 1.5
"""What the collector gets to take a batch; less than a process gets to end."""
BATCH = 500
LOCAL_PROVIDER = "llama.cpp"


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: line.shutdown(socket.SHUT_RDWR))
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    set_up_logging(settings.log)
    traces = Traces(settings, default_path(), *map(int, sys.argv[2:]))
    well = True
    while not select.select([line], [], [], POLL_SECONDS if well else REST_SECONDS)[0]:
        well = traces.send()
    if well:
        traces.send()


class Traces:
    """Spans of the requests that the ledger gets from now on, or has from behind the one with the number `sent` on."""

    def __init__(self, settings: Settings, ledger: Path, sent: int | None = None) -> None:
        self._ledger = ledger
        # Before the imports, which take a while.
        self._note_sent(self._latest() if sent is None else sent)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        # It logs every failure at length.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._endpoint = str(settings.telemetry.otlp_endpoint).rstrip("/")
        self._exporter = OTLPSpanExporter(endpoint=f"{self._endpoint}/v1/traces", timeout=SEND_SECONDS)
        self._resource = Resource.create({"service.name": "upcall", "service.version": metadata.version("upcall")})
        self._providers = {cloud.name: cloud.provider for cloud in resolve.clouds(settings.cloud)}
        self._local_provider = "openai" if settings.local.endpoint else LOCAL_PROVIDER
        self._trouble = ""

    def send(self) -> bool:
        """Send what is new; whether that went well. What the collector did not take is sent again the next time."""
        trouble = ""
        try:
            while not trouble and (new := self._newer()):
                if self._exporter.export([self._span(record) for _, record in new]).name == "SUCCESS":
                    self._note_sent(new[-1][0])
                else:
                    trouble = f"{self._endpoint} takes no spans; is a collector there, with OTLP over HTTP?"
        except LedgerError as error:
            trouble = str(error)
        if trouble and not self._trouble:
            log.error("traces wait to be sent: %s", trouble)
        elif self._trouble and not trouble:
            log.info("traces are sent again")
        self._trouble = trouble
        return not trouble

    def _note_sent(self, number: int) -> None:
        self._last = number
        print(number, flush=True)

    def _latest(self) -> int:
        if not self._ledger.exists():
            return 0
        with opened(self._ledger) as history:
            return history.latest()

    def _newer(self) -> list[tuple[int, Record]]:
        if not self._ledger.exists():
            return []
        with opened(self._ledger) as history:
            return history.newer(self._last, BATCH)

    def _span(self, record: Record) -> "ReadableSpan":
        """Its trace has the request's id."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        trace, start = int(record.id, 16), int(record.time * 1e9)
        provider = self._local_provider if record.route == "local" else self._providers.get(record.model or "")
        failed = record.outcome not in ("ok", "cancelled")
        return ReadableSpan(
            f"chat {record.model}" if record.model else "chat",
            SpanContext(trace, trace % 2**64, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)),
            resource=self._resource,
            attributes=attributes(record, provider),
            kind=SpanKind.CLIENT,
            instrumentation_scope=InstrumentationScope("upcall"),
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=start,
            end_time=start + int((record.total_ms or 0) * 1e6),
        )


def attributes(record: Record, provider: str | None) -> Mapping[str, str | bool | int | float]:
    """Of the span: the conventions' own names first, then what only upcall knows. What is not known is left out."""
    finished = record.outcome == "ok"
    named = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model if finished else None,
        "gen_ai.usage.input_tokens": record.prompt_tokens or None,
        "gen_ai.usage.output_tokens": record.completion_tokens or None,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens or None,
        "gen_ai.response.time_to_first_chunk": None if record.first_ms is None else record.first_ms / 1000,
        "error.type": None if finished or record.outcome == "cancelled" else record.outcome,
        "upcall.wire": record.wire,
        "upcall.outcome": record.outcome,
        "upcall.first_error": record.error,
        "upcall.route": record.route,
        "upcall.reason": record.reason,
        "upcall.router": record.router,
        "upcall.score": record.score,
        "upcall.threshold": record.threshold,
        "upcall.confidence": record.confidence,
        "upcall.degraded": record.degraded,
        "upcall.cost_usd": record.cost_usd,
        "upcall.saved_usd": record.saved_usd,
    }
    return {name: value for name, value in named.items() if value is not None}


if __name__ == "__main__":
    main()
