"""The application: routes, errors, what runs beside them, and the OpenAPI document."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from llmcfsr_merlin import __version__
from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving.gateway.asking import Asking
from llmcfsr_merlin.serving.gateway.catalogue import Catalogue
from llmcfsr_merlin.serving.gateway.catalogue_shards import Shards
from llmcfsr_merlin.serving.gateway.front import Front
from llmcfsr_merlin.serving.gateway.keys import Keys
from llmcfsr_merlin.serving.gateway.models import field_name
from llmcfsr_merlin.serving.gateway.problems import Problem, invalid_fields
from llmcfsr_merlin.serving.gateway.rates import Rates
from llmcfsr_merlin.serving.gateway.replicas import Replicas
from llmcfsr_merlin.serving.gateway.routes import make_router
from llmcfsr_merlin.serving.gateway.telemetry import Telemetry

_log = logging.getLogger(__name__)
_REFRESH = 2.0  # seconds between two looks at the repository and at the keys


def make_app(
    repository: Path,
    replicas: Sequence[str],
    settings: GatewayConfig,
    *,
    sharded: bool = False,
    keys: Keys | None = None,
    cors: Sequence[str] = (),
    log_requests: bool = False,
    telemetry: Telemetry | None = None,
    beside: Callable[[], None] = lambda: None,
) -> Any:
    """The ASGI application in front of `replicas` (host:port of their gRPC), which serve exports like `repository`.

    sharded: they are the shards of one catalogue, in order (catalogue_shards.py). beside: called every second.
    """
    telemetry = telemetry or Telemetry()
    rates = Rates(settings.rate)
    servers = (Shards if sharded else Replicas)(replicas, settings.patience)
    asking = Asking(settings, servers, Catalogue(repository), telemetry)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asking.replicas.start()
        asking.replicas_changed()
        chores = asyncio.create_task(_chores(asking, keys, beside))
        try:
            yield
        finally:
            chores.cancel()
            await asking.replicas.stop()

    app = FastAPI(
        title="LLM-CFSR",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    router, models = make_router(asking, rates, telemetry)
    app.include_router(router)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _query_problem)
    app.openapi = lambda: _document(app, models)  # type: ignore[method-assign]
    front: Any = Front(app, keys=keys, rates=rates, telemetry=telemetry, log_requests=log_requests)
    if cors:
        headers = ("content-type", "x-api-key", "authorization")
        front = CORSMiddleware(front, allow_origins=list(cors), allow_methods=("GET", "POST"), allow_headers=headers)
    return front


async def _chores(asking: Asking, keys: Keys | None, beside: Callable[[], None]) -> None:
    turn = 0.0
    while True:
        await asyncio.sleep(1.0)
        turn += 1.0
        try:
            beside()
            if turn % _REFRESH == 0:
                await asking.refresh()
                if keys is not None:
                    keys.refresh()
        except InputError as error:  # the keys of before stay
            _log.warning("%s", error)
        except Exception:
            _log.exception("the gateway's chores")


async def _problem(request: Request, problem: Any) -> Response:
    return problem.response()


async def _http_problem(request: Request, error: Any) -> Response:
    if error.status_code == 404:
        return Problem("not-found", "expected a path of the API: /docs lists them").response()
    if error.status_code == 405:
        return Problem("method-not-allowed", "expected another method", headers=dict(error.headers or {})).response()
    return Problem("invalid-json", str(error.detail)).response()


async def _query_problem(request: Request, error: Any) -> Response:
    errors = [(field_name(one["loc"][1:]), one["msg"].replace("Input should be", "expected")) for one in error.errors()]
    return invalid_fields(errors).response()


def _document(app: FastAPI, models: list[type]) -> dict:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, found = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas |= found["$defs"]
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which is not what is answered
            schemas.pop(name, None)
        keys = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        document["components"]["securitySchemes"] = {"key": keys}
        document["security"] = [{}, {"key": []}]  # none on loopback
        app.openapi_schema = document
    return app.openapi_schema
