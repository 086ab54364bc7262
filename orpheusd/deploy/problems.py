"""Says what is wrong with a settings file: every mistake, with its line, what was found and what is allowed.

It turns the findings of pydantic into sentences, with the help of the model's own bounds, and the bounds into
words that the reference page uses too. It knows nothing of which settings exist.
"""

import difflib
from collections.abc import Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orpheusd.deploy.yamldoc import Document, Place, Problem, dotted, kind, shown
from orpheusd.errors import OrpheusError

#: More mistakes than anybody reads in one go.
LIMIT_PROBLEMS = 50


class Row(NamedTuple):
    """A setting as the reference page shows it."""

    key: str
    default: str
    allowed: str
    meaning: str


@cache
def rows(model: type[BaseModel]) -> tuple[Row, ...]:
    """Every setting of a model, inner ones as `outer.inner`, in the order of their definition."""
    found: list[Row] = []
    for name, field in model.model_fields.items():
        inner = _model_of(field)
        if inner is not None:
            found += [row._replace(key=f"{name}.{row.key}") for row in rows(inner)]
        else:
            found.append(Row(name, _default(field), allowed(field), str(field.description)))
    return tuple(found)


@cache
def private_keys(model: type[BaseModel]) -> frozenset[str]:
    """The settings whose values are kept out of errors."""
    return frozenset(name for name, field in model.model_fields.items() if _extra(field, "private"))


def allowed(field: FieldInfo) -> str:
    """What a setting may be, in words: the model's own, or made from its type and bounds."""
    if _extra(field, "allowed"):
        return _extra(field, "allowed")
    if _model_of(field) is not None:
        return "a mapping of keys to values"
    if get_origin(field.annotation) is Literal:
        choices = [str(choice) for choice in get_args(field.annotation)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if field.annotation is bool:
        return "true or false"
    if field.annotation in (int, float):
        bounds = {name: getattr(item, name) for item in field.metadata for name in ("ge", "gt", "le")
                  if getattr(item, name, None) is not None}
        noun = "a whole number" if field.annotation is int else "a number"
        if "ge" in bounds:
            return f"{noun} from {bounds['ge']:g} to {bounds['le']:.0f}"
        return f"{noun} above {bounds['gt']:g}, at most {bounds['le']:.0f}"
    return "text"


def explain(error: ErrorDetails, model: type[BaseModel], document: Document) -> Problem:
    """One finding of pydantic about `document`, in words."""
    place: Place = tuple(part for part in error["loc"] if part != "[key]")
    ctx = error.get("ctx", {})
    if isinstance(ctx.get("field"), str):  # a rule between two fields names the one to change
        place = (*place, *ctx["field"].split("."))
    line = document.line(place)
    name = dotted(place)
    if error["type"] == "extra_forbidden":
        return _unknown(place, line, model)
    field = _field(model, place)
    may_be = allowed(field) if field is not None else "another value"
    if error["type"] == "missing":
        return Problem(line, name, "nothing", may_be, f"`{name}` is required: {may_be}")
    value = error["input"]
    found = kind(value) if field is None or not _extra(field, "private") else "not shown"
    if error["type"] == "too_long":
        return Problem(line, name, found, may_be, f"`{name}` must hold at most {ctx['max_length']}, not {len(value)}")
    if error["type"] in ("value_error", "rule"):
        said = str(ctx.get("error") or error["msg"])
        return Problem(line, name, found, may_be, f"`{name}` {said}")
    return Problem(line, name, found, may_be, f"`{name}` must be {may_be}, not {_found(value, place, document)}")


def refusal(source: str, problems: Sequence[Problem]) -> OrpheusError:
    """The error that lists every problem, in the order of the file."""
    listed = sorted(set(problems))[:LIMIT_PROBLEMS]
    lines = [f"line {problem.line}: {problem.message}" for problem in listed]
    if len(lines) == 1:
        message = f"{source}, {lines[0]}"
    else:
        more = len(set(problems)) - len(listed)
        lines += [f"and {more} more"] if more else []
        message = f"{source} has {len(listed) + more} mistakes:\n  " + "\n  ".join(lines)
    return OrpheusError(
        "invalid-request", message, {"source": source, "problems": [problem._asdict() for problem in listed]})


def _unknown(place: Place, line: int, model: type[BaseModel]) -> Problem:
    name = dotted(place)
    prefix = f"{dotted(place[:-1])}." if len(place) > 1 else ""
    every = [row.key for row in rows(model)]
    here = [key.removeprefix(prefix) for key in every if key.startswith(prefix)]
    known = sorted({key.split(".")[0] for key in here})
    last = str(place[-1])
    near = difflib.get_close_matches(last.replace("-", "_").lower(), known, n=1)
    if near:
        hint = f"did you mean `{prefix}{near[0]}`?"
    else:
        leaves = {key.split(".")[-1]: key for key in reversed(every)}
        elsewhere = difflib.get_close_matches(last.replace("-", "_").lower(), leaves, n=1)
        hint = f"did you mean `{leaves[elsewhere[0]]}`?" if elsewhere else f"known here are {', '.join(known)}"
    return Problem(line, name, "an unknown key", ", ".join(known), f"`{name}` is not a known key; {hint}")


def _found(value: Any, place: Place, document: Document) -> str:
    written = document.written.get(place)
    if isinstance(value, bool) and written is not None:
        reading = "" if written.lower() in ("true", "false") else f" (which YAML reads as {kind(value)})"
        return f"{written}{reading}; if you mean the text, write it in quotes: \"{written}\""
    if isinstance(value, int | float) and written is not None:
        return shown(value) if written == str(value) else f"{written} (which YAML reads as {shown(value)})"
    return kind(value)


def _default(field: FieldInfo) -> str:
    if _extra(field, "shown"):
        return _extra(field, "shown")
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.1f}" if isinstance(value, float) and value < 10 else f"{value:g}" if isinstance(
        value, float) else "none" if value in (None, {}) else str(value)


def _extra(field: FieldInfo, name: str) -> str:
    """What the model adds to a setting: words for `allowed` and `shown` (its default), and whether it is `private`."""
    extra = field.json_schema_extra
    return str(extra.get(name, "")) if isinstance(extra, dict) else ""


def _field(model: type[BaseModel], place: Place) -> FieldInfo | None:
    """The field at `place`, or the field whose value holds that place."""
    field = None
    for part in place:
        fields = model.model_fields
        if part not in fields:
            return field
        field = fields[str(part)]
        inner = _model_of(field)
        if inner is None:
            return field
        model = inner
    return field


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
    for each in kinds:
        if each is not NoneType and isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None
