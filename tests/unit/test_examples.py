"""The example agents, run as plain Python: an agent is a function, and needs no daemon to be tested."""

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AGENTS = sorted(path.parent.name for path in EXAMPLES.glob("*/agent.yaml"))
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """A function that imports an example's module afresh, as a new worker would."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for path in EXAMPLES.glob("*/*.py"):
            sys.modules.pop(path.stem, None)

    def load(name: str) -> ModuleType:
        forget()
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        return importlib.import_module(settings(name)["module"])

    yield load
    forget()


def settings(name: str) -> dict[str, Any]:
    described: dict[str, Any] = yaml.safe_load((EXAMPLES / name / "agent.yaml").read_text())
    return described


def test_the_examples_are_those_the_documents_name() -> None:
    assert AGENTS == ["conversation", "durable-conversation", "preloaded", "streaming"]


@pytest.mark.parametrize("name", AGENTS)
def test_an_example_is_complete(name: str, load: Load) -> None:
    described = settings(name)
    assert described["runtime"] == "python3"
    assert callable(getattr(load(name), described["entrypoint"]))
    readme = (EXAMPLES / name / "README.md").read_text()
    assert f"orpheus deploy examples/{name}" in readme
    assert f" {described['name']} " in readme


def test_conversation_counts_each_session_by_itself(load: Load) -> None:
    handler = load("conversation").handler
    assert handler({"session_id": "a", "query": "one"}) == {"response": "You said: one", "turn": 1}
    assert handler({"session_id": "b", "query": "one"})["turn"] == 1
    assert handler({"session_id": "a", "query": "two"})["turn"] == 2
    assert handler({"query": "no session"})["turn"] == 1


def test_conversation_forgets_with_its_process(load: Load) -> None:
    load("conversation").handler({"session_id": "a", "query": "one"})
    assert load("conversation").handler({"session_id": "a", "query": "two"})["turn"] == 1


def test_durable_conversation_outlives_its_process(
        load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKSPACE_DIR", str(tmp_path))
    assert load("durable-conversation").handler({"session_id": "a", "query": "one"})["turn"] == 1
    assert load("durable-conversation").handler({"session_id": "a", "query": "two"})["turn"] == 2
    assert load("durable-conversation").handler({"session_id": "b", "query": "one"})["turn"] == 1
    assert json.loads((tmp_path / "sessions" / "a.json").read_text()) == ["one", "two"]
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == ["a.json", "b.json"]


def test_streaming_yields_word_by_word(load: Load) -> None:
    async def pieces() -> list[Any]:
        return [piece async for piece in load("streaming").handler({"query": "one two three", "pause_s": 0})]

    assert asyncio.run(pieces()) == [{"token": "one"}, {"token": "two"}, {"token": "three"}]


def test_preloaded_knows_smallest_factors(load: Load) -> None:
    agent = load("preloaded")
    assert [agent.handler({"number": number})["smallest_factor"] for number in (1, 2, 91, 97, 999_983)] \
        == [1, 2, 7, 97, 999_983]
    with pytest.raises(ValueError, match="from 0 to 1000000"):
        agent.handler({"number": -1})
