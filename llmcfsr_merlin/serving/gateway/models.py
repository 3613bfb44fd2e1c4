"""What is asked and answered, as pydantic models: they check requests and make the OpenAPI document."""

from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.serving.gateway.problems import Problem, invalid_fields

_MOST_KEYS = 50  # of an object: what has more is not looked at
_INT64, _EXACT = 2**63, 2**53
DEFAULT_K = 10


class Reason(BaseModel):
    """Why an item was recommended."""

    shares: dict[str, float] = Field(description="what each part of the model added to the score")
    match: str | None = Field(description="the item of the history that the recommended one is most like")


class Item(BaseModel):
    id: str
    score: float
    title: str | None = Field(None, description="left out if it is not known")
    reasons: Reason | None = Field(None, description="where `explain` asked for them")


class Answer(BaseModel):
    items: list[Item] = Field(description="best first; fewer than k if no more are left")
    unknown: int = Field(description="ids of the history that the model does not know")
    fallback: bool = Field(description="true: nothing of the history was known, these are the most popular items")
    degraded: bool = Field(description="true: no model server answered, these are the most popular items")
    exact: bool = Field(description="false: the items were found by approximate search, their scores are exact")
    model_version: str = Field(description="of the model that answered")


class Answers(BaseModel):
    answers: list[Answer] = Field(description="one per user, in the order of the request")


class CatalogueItem(BaseModel):
    id: str
    title: str | None
    interactions: int = Field(description="how often users chose it in the data of the model")


class CatalogueItems(BaseModel):
    items: list[CatalogueItem]


class Health(BaseModel):
    status: str
    model_versions: list[str] = []


class FieldError(BaseModel):
    field: str
    detail: str


class ProblemDetails(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []


def question_models(limits: GatewayConfig, max_top_k: int) -> tuple[type[BaseModel], type[BaseModel]]:
    """The models of a request for one user and for many, with these limits."""
    text = {"minLength": 1, "maxLength": limits.max_id_length}
    one = Annotated[
        str,
        BeforeValidator(_integer_as_text),
        StringConstraints(min_length=1, max_length=limits.max_id_length, strict=True),
        WithJsonSchema(
            {"anyOf": [{"type": "string", **text}, {"type": "integer", "minimum": -_INT64, "maximum": _INT64 - 1}]}
        ),
    ]
    strict = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    class Question(BaseModel):
        """One user."""

        model_config = strict

        history: Annotated[list[one], Field(max_length=limits.max_history)] = Field(
            description="raw item ids, oldest first"
        )
        k: Annotated[int, BeforeValidator(_whole)] = Field(DEFAULT_K, ge=1, le=max_top_k, description="how many items")
        exclude_seen: bool | None = Field(
            None, description="leave out the items of the history; if not given, as the model was trained"
        )
        allow: Annotated[list[one], Field(min_length=1, max_length=limits.max_list)] | None = Field(
            None, description="only these items"
        )
        deny: Annotated[list[one], Field(max_length=limits.max_list)] | None = Field(
            None, description="never these items"
        )
        explain: bool = Field(False, description="give reasons")

    class Questions(BaseModel):
        """Many users."""

        model_config = strict

        users: list[Question] = Field(min_length=1, max_length=limits.max_users)

    return Question, Questions


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is the integer 3. Integers beyond 64 bits are read as floats: no such ones."""
    return int(value) if type(value) is float and value.is_integer() and abs(value) <= _EXACT else value


def _integer_as_text(value: Any) -> Any:
    whole = _whole(value)
    return str(whole) if type(whole) is int and -_INT64 <= whole < _INT64 else value


def read(model: type[BaseModel], value: Any) -> Any:
    """`value` as a model; Problem names every field that is not as expected."""
    if type(value) is not dict:
        raise invalid_fields([("body", f"expected an object, found {_kind(value)}")])
    if len(value) > _MOST_KEYS:
        raise Problem("invalid-field", f"body: expected the fields of the API, found {len(value)} fields")
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise invalid_fields([(field_name(one["loc"]), _said(one)) for one in found]) from None


def field_name(location: tuple) -> str:
    """("users", 3, "history", 0) -> "users[3].history[0]"."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text[:100] or "body"


def _said(error: Any) -> str:
    told = error["msg"].replace("Input should be", "expected")
    expected = "expected no such field" if error["type"] == "extra_forbidden" else told
    given = error.get("input")
    return f"{expected}, found {_kind(given)}" if error["type"].endswith("_type") else expected


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
