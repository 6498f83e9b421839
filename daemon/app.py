"""The HTTP application: middlewares, routes, and errors as answers."""

import logging
import traceback
from collections.abc import Callable
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

from daemon.accounts.budget import Budget
from daemon.accounts.metrics import Metrics
from daemon.api import dashboard, openapi
from daemon.api.anthropic import Anthropic, name_request
from daemon.api.catalogue import Catalogue
from daemon.api.control import Control
from daemon.api.embeddings import Embeddings
from daemon.api.errors import ApiError
from daemon.api.exposition import Exposition
from daemon.api.feedback import Feedback
from daemon.api.history import History
from daemon.api.ollama import Ollama
from daemon.api.openai import OpenAI
from daemon.api.responses import Responses
from daemon.api.sharing import Sharing
from daemon.api.text_completion import TextCompletions
from daemon.api.wires import error_response
from daemon.client import SERVER
from daemon.config import Settings
from daemon.dispatcher import Dispatcher
from daemon.guard import Guard
from daemon.patience import Patience
from daemon.processes.workers import Workers
from daemon.routing.recent import Recent
from daemon.routing.scorer import Scorer

log = logging.getLogger(__name__)

HEADER_BYTES = 16 * 2**10


def build(
    settings: Settings,
    workers: Workers,
    scorer: Scorer,
    budget: Budget,
    metrics: Metrics,
    patience: Patience,
    recent: Recent,
    port: Callable[[], int],
) -> web.Application:
    """`port` gives the port that Host headers must name, known once the socket is bound."""
    guard = Guard(settings.server, port, lambda: workers.standing.token_sha256, public=dashboard.PATHS)
    app = web.Application(
        middlewares=[patience.middleware, errors, guard.middleware],
        client_max_size=settings.server.max_body_bytes,
        handler_args={"max_field_size": HEADER_BYTES, "max_line_size": HEADER_BYTES},
    )
    app.on_response_prepare.append(guard.grant)
    app.on_response_prepare.append(name_request)
    app.on_response_prepare.append(partial(_introduce, workers))
    dispatcher = Dispatcher(settings, workers, scorer, budget, recent)
    catalogue = Catalogue(settings.cloud, workers, scorer)
    for wire in (
        OpenAI(dispatcher, settings.routing),
        TextCompletions(dispatcher, settings.routing),
        Responses(dispatcher, settings.routing),
        Embeddings(scorer),
        catalogue,
        Anthropic(dispatcher, settings.routing),
        Ollama(dispatcher, settings.routing, scorer, catalogue),
    ):
        app.add_routes(wire.routes())
    app.add_routes(dashboard.Dashboard().routes())
    app.router.add_get("/openapi.json", openapi.serve)
    control = Control(settings, workers, scorer)
    app.add_routes(control.routes())
    app.add_routes(Sharing(settings.routing, workers, scorer, budget.ledger).routes())
    app.add_routes(Feedback(settings, workers, budget.ledger, recent).routes())
    app.add_routes(Exposition(metrics, control).routes())
    history = History(budget, settings.budget, control)
    app.add_routes(history.routes())
    app.on_shutdown.append(history.close)
    return app


async def _introduce(workers: Workers, _: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER
    if workers.standing.privacy:
        response.headers["x-upcall-privacy"] = "on"


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in one line, as the wire format has it, with nothing about the inside of upcall."""
    try:
        return await handler(request)
    except ApiError as error:
        told = error
    except web.HTTPRequestEntityTooLarge:
        limit = request.app._client_max_size
        return error_response(
            request.path, ApiError(413, f"The body is larger than {limit} bytes (server.max_body_bytes).")
        )
    except web.HTTPException as error:
        known = ", ".join(sorted({route.resource.canonical for route in request.app.router.routes() if route.resource}))
        return error_response(
            request.path, ApiError(error.status, f"{request.method} {request.path}: {error.reason}. There is: {known}.")
        )
    except ConnectionError:
        raise
    except Exception as error:
        # An exception's text may quote the prompt, so neither the client nor the log gets it.
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = type(error).__name__
        log.error("%s %s ended by a %s at %s:%s", request.method, request.path, kind, place.filename, place.lineno)
        told = ApiError(500, "upcall failed on this request; its log names the place.")
    return error_response(request.path, told)
