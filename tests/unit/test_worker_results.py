"""Results as JSON: what passes comes out as any decoder reads it, what does not says where it is wrong."""

import json
import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from orpheusd.worker.explain import MAX_DEPTH
from orpheusd.worker.results import Pieces, RefusedResult, encode

SCALARS = st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats() | st.text() | st.text(
    alphabet=st.characters(categories=["Cs", "L"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20)


@dataclass
class Node:
    inner: Any


class Model(BaseModel):
    names: set[str]
    inner: "Model | None" = None


class Endless:
    def model_dump(self, mode: str) -> "Endless":
        return Endless()


class Liar:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("I will not say")


class BrokenMapping(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no items")


def is_fit(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(is_fit(key) and is_fit(item) for key, item in value.items())
    return all(map(is_fit, value)) if isinstance(value, list | tuple) else True


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@given(VALUES)
def test_what_json_can_carry_passes_and_nothing_else(value: Any) -> None:
    if not is_fit(value):
        with pytest.raises(RefusedResult, match=r"^result"):
            encode(value)
        return
    data = encode(value)
    assert b"\n" not in data
    assert orjson.loads(data) == json.loads(data) == plain(value)


@pytest.mark.parametrize(("value", "expected"), [
    (Model(names={"a"}, inner=Model(names=set())), {"names": ["a"], "inner": {"names": [], "inner": None}}),
    (Node(Node([Node(1)])), {"inner": {"inner": [{"inner": 1}]}}),
    (namedtuple("Pair", "x y")(1, 2), [1, 2]),
    (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    ({1, "a"}, None),
])
def test_more_than_plain_values(value: Any, expected: Any) -> None:
    found = json.loads(encode(value))
    assert found == expected or (expected is None and sorted(map(str, found)) == ["1", "a"])


def nested(levels: int, innermost: Any = None) -> Any:
    value = [] if innermost is None else [innermost]
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(("value", "says"), [
    ({"a": [{"b c": float("nan")}]}, "result.a[0]['b c'] is nan, which JSON cannot carry"),
    ({"x" * 600: object()}, "result.xxxx"),
    (nested(MAX_DEPTH + 1), "result is nested deeper than 500 levels"),
    (nested(MAX_DEPTH, {}), "result is nested deeper than 500 levels"),
    (nested(300, float("inf")), "result[0][0]"),
    ({"s": {1.5: {None: {True: b""}}}}, "result.s[1.5][None][True] is bytes"),
    (Endless(), "result is nested deeper than 500 levels"),
    (BrokenMapping(a=1), "result cannot be read: RuntimeError was raised"),
    ({float("nan"): 1}, "result has a key that is nan"),
    ({"\udc00": 1}, "result has a key that holds a lone surrogate"),
    ((number for number in range(3)), "result is a generator"),
    (Node, "result is a class"),
    (1 + 2j, "result is of type complex"),
])
def test_what_does_not_pass_says_where_and_why(value: Any, says: str) -> None:
    with pytest.raises(RefusedResult) as refused:
        encode(value)
    assert refused.value.code == "unserialisable-result"
    assert str(refused.value).startswith(says)
    assert len(str(refused.value)) < 1000


def test_a_value_that_lies_about_its_class_is_refused() -> None:
    # Not a parameter: pytest itself would believe it.
    with pytest.raises(RefusedResult, match="result cannot be read: RuntimeError was raised"):
        encode(Liar())


def test_depth_counts_containers_and_not_brackets_in_text() -> None:
    assert encode(nested(MAX_DEPTH)) == b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert encode(["[[{{" * 1000, '"\\', ["]" * 600]])


def test_the_limit_is_counted_in_bytes() -> None:
    assert encode("é" * 5, limit_bytes=12)
    with pytest.raises(RefusedResult, match=r"event is 14 bytes of JSON, more than the 12") as refused:
        encode("é" * 6, "event", limit_bytes=12)
    assert refused.value.code == "too-large"


def test_running_out_of_memory_is_not_called_unserialisable() -> None:
    class Hungry:
        def model_dump(self, mode: str) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        encode(Hungry())


@given(st.lists(st.integers() | st.text(alphabet="aé", max_size=5), max_size=20), st.integers(2, 60))
def test_pieces_become_a_list_or_are_too_large(values: list[Any], limit_bytes: int) -> None:
    pieces = Pieces(limit_bytes)
    try:
        for value in values:
            assert json.loads(pieces.add(value)) == value
        data = pieces.result()
    except RefusedResult as refused:
        assert refused.code == "too-large"
        assert len(encode(values)) + 1 > limit_bytes
    else:
        assert json.loads(data) == values
        assert len(data) <= limit_bytes


def test_a_piece_that_does_not_fit_names_its_number() -> None:
    pieces = Pieces(1000)
    pieces.add(1)
    with pytest.raises(RefusedResult, match=r"^result\[1\]\.a is nan"):
        pieces.add({"a": float("nan")})
