"""The recipes of docs/sessions.md: their files are deployed, their commands run, and what they promise is tried."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpheusd.errors import OrpheusError
from tests.console import run, steps
from tests.daemon import ROOT, Control, Daemon

PAGE = (ROOT / "docs/sessions.md").read_text().partition("\n## Recipes\n")[2].partition("\n## ")[0]
RECIPES = dict(re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL))
FILE = re.compile(r"^```\w+\n# ([\w-]+)/([\w.]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def cook(daemon: Daemon, tmp_path: Path) -> Callable[[str], str]:
    """A function that does what a recipe says, to the letter, and returns the name of its agent."""

    def follow(title: str) -> str:
        text = RECIPES[title]
        names = {folder for folder, _, _ in FILE.findall(text)}
        assert len(names) == 1
        for folder, file, content in FILE.findall(text):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / file).write_text(content)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        told = list(steps(text))
        assert told
        for step in told:
            run(step, {**daemon.ctl_env, "PATH": path}, tmp_path)
        return names.pop()

    return follow


def kill_workers(control: Control, agent: str) -> None:
    for row in control.call("agent.show", agent=agent)["workers"]:
        os.kill(row["pid"], signal.SIGKILL)


def test_these_are_the_recipes() -> None:
    assert list(RECIPES) == ["A conversational agent", "A multi-step workflow", "A strict single writer",
                             "Interrupting an agent"]


def test_a_conversation_goes_on_after_its_worker_died(daemon: Daemon, cook: Callable[[str], str]) -> None:
    name = cook("A conversational agent")
    with daemon.connect() as control:
        ids = [control.send("run", agent=name, session_id="bob", input={"say": str(n)}) for n in range(10)]
        answers = {frame["id"]: frame["result"] for frame in (control.receive() for _ in ids)}
        assert [answers[id]["result"]["heard"][-1] for id in ids] == [str(n) for n in range(10)]
        assert answers[ids[-1]]["result"] == {"heard": [str(n) for n in range(10)], "turn": 10}
        kill_workers(control, name)
        answer = control.call("run", agent=name, session_id="bob", input={"say": "still there?"})
    assert answer["session"] == {"id": "bob", "context": "restored", "turn": 11}
    assert answer["result"]["heard"][-2:] == ["9", "still there?"]


def test_a_workflow_repeats_the_step_that_failed_and_no_other(daemon: Daemon, cook: Callable[[str], str]) -> None:
    name = cook("A multi-step workflow")
    with daemon.connect() as control:
        did: list[Any] = []
        while not did or did[-1] is not None:
            for _ in range(2):
                with pytest.raises(OrpheusError, match="cannot"):
                    control.call("run", agent=name, session_id="april", input={"fail": True})
            did.append(control.call("run", agent=name, session_id="april", input={})["result"]["next"])
        assert did == ["summarise", "publish", None]
        assert control.call("run", agent=name, session_id="april", input={})["result"]["done"] == [
            "fetch", "summarise", "publish"]


def test_a_single_writer_loses_no_change(daemon: Daemon, cook: Callable[[str], str]) -> None:
    name = cook("A strict single writer")
    with daemon.connect() as control:
        ids = [control.send("run", agent=name, session_id="account-8", input={"add": 1}) for _ in range(100)]
        answers = {frame["id"]: frame["result"] for frame in (control.receive() for _ in ids)}
    assert [answers[id]["result"]["balance"] for id in ids] == list(range(1, 101))
    assert len({answer["worker_id"] for answer in answers.values()}) == 1


def test_an_interrupted_agent_answers_the_new_question(daemon: Daemon, cook: Callable[[str], str]) -> None:
    name = cook("Interrupting an agent")
    with daemon.connect() as control, daemon.connect() as other:
        first = control.send("run", agent=name, session_id="bob", stream=True,
                             input={"question": "life", "steps": 2000})
        while control.receive().get("params", {}).get("data") != "thinking about life":
            pass  # each frame within the connection's deadline
        begun = time.monotonic()
        answer = other.call("run", agent=name, session_id="bob", input={"question": "tea"})
        assert time.monotonic() - begun < 1.0
        assert answer["result"] == {"answer": "enough of tea", "dropped": ["life"]}
        assert answer["session"]["context"] == "warm"
        while (frame := control.receive()).get("id") != first:
            pass
        assert frame["error"]["data"]["code"] == "cancelled"
