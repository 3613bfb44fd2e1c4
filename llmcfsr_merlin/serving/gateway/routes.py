"""The routes. Questions are checked by models made for these limits, answers are written without pydantic."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from llmcfsr_merlin.serving.gateway.asking import Asking
from llmcfsr_merlin.serving.gateway.body import json_of
from llmcfsr_merlin.serving.gateway.front import CALLER
from llmcfsr_merlin.serving.gateway.models import (
    DEFAULT_K,
    Answer,
    Answers,
    CatalogueItem,
    CatalogueItems,
    Health,
    ProblemDetails,
    question_models,
    read,
)
from llmcfsr_merlin.serving.gateway.problems import MEDIA_TYPE, Problem, busy, invalid_fields
from llmcfsr_merlin.serving.gateway.rates import Rates
from llmcfsr_merlin.serving.gateway.replicas import RETRY_SECONDS
from llmcfsr_merlin.serving.gateway.telemetry import CONTENT_TYPE, Telemetry
from llmcfsr_merlin.serving.gateway.tensors import Row

_LONGEST_QUERY = 100


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the document says of errors."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"description": "Problem details", "content": content} for status in statuses}


def make_router(asking: Asking, rates: Rates, telemetry: Telemetry) -> tuple[APIRouter, list[type]]:
    """The routes, and the models that the document needs beside those it finds."""
    settings, router = asking.settings, APIRouter()
    question, questions = question_models(settings, asking.served.max_top_k)
    refused = problems(400, 401, 408, 413, 415, 422, 429, 431, 503)
    ItemId = Annotated[str, Path(min_length=1, max_length=settings.max_id_length, description="raw item id")]

    @router.post(
        "/recommend",
        response_model=Answer | Answers,
        responses=refused,
        summary="Items for a history, or for those of many users",
        openapi_extra={"requestBody": _documented(question, questions)},
    )
    async def recommend(request: Request) -> Response:
        asked = await json_of(request, settings.max_body_bytes)
        if type(asked) is dict and "users" in asked:
            users = read(questions, asked).users
            rates.take(request.scope[CALLER], len(users) - 1)
            telemetry.users.inc(len(users))
            return _json({"answers": await asking.answer([_row(user) for user in users])})
        row = _row(read(question, asked))
        telemetry.users.inc()
        return _json((await asking.answer([row]))[0])

    @router.get(
        "/recommend/item/{id:path}",
        response_model=Answer,
        responses=problems(401, 404, 422, 429, 503),
        summary="Items like one: what the model recommends after it",
    )
    async def similar(
        id: ItemId, k: Annotated[int, Query(ge=1, le=asking.served.max_top_k)] = DEFAULT_K, explain: bool = False
    ) -> Response:
        (answer,) = await asking.answer([Row([id], k, True, None, [], explain)])
        if answer["unknown"] or (answer["fallback"] and not answer["degraded"]):
            raise Problem("not-found", "the model does not know this item")
        return _json(answer)

    @router.get("/items", response_model=CatalogueItems, responses=problems(401, 422, 429), summary="Items by title")
    async def find_items(
        query: Annotated[
            str,
            Query(
                min_length=1,
                max_length=_LONGEST_QUERY,
                description="part of a title, or an id",
                json_schema_extra={"pattern": r"\S"},
            ),
        ],
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        if not query.strip():
            raise invalid_fields([("query", "expected a part of a title, found nothing but space")])
        return _json({"items": await asking.catalogue.search(query.strip(), limit, settings.timeout)})

    @router.get(
        "/items/{id:path}", response_model=CatalogueItem, responses=problems(401, 404, 422, 429), summary="An item"
    )
    async def item(id: ItemId) -> Response:
        place = asking.catalogue.table.find(id)
        if place is None:
            raise Problem("not-found", "the catalogue has no item of this id")
        return _json(asking.catalogue.table.item(place))

    @router.get("/health/live", response_model=Health, summary="Whether the gateway runs")
    async def live() -> Response:
        return _json({"status": "live", "model_versions": sorted(asking.replicas.versions)})

    @router.get("/health/ready", response_model=Health, responses=problems(503), summary="Whether a model answers")
    async def ready() -> Response:
        if not await asking.replicas.answers():
            raise busy("no-server", "no model server answers at the moment", RETRY_SECONDS)
        return _json({"status": "ready", "model_versions": sorted(asking.replicas.versions)})

    @router.get("/metrics", summary="Counters for Prometheus", responses=problems(401, 429), response_class=Response)
    async def metrics() -> Response:
        return Response(telemetry.exposition(asking.slots, asking.cache, asking.replicas.all), media_type=CONTENT_TYPE)

    return router, [question, questions, ProblemDetails]


def _row(asked: Any) -> Row:
    return Row(asked.history, asked.k, asked.exclude_seen, asked.allow, asked.deny or [], asked.explain)


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _documented(question: type, questions: type) -> dict:
    names = (question.__name__, questions.__name__)
    schema = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}
    one = {"history": ["B0000530ED", "B000052YO5"], "k": 5, "exclude_seen": True}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": one}}}
