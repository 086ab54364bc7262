"""docs/lifecycles.md says what the transition tables say, move for move."""

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from orpheusd.core.agent import TRANSITIONS as AGENT
from orpheusd.core.run import TRANSITIONS as RUN
from orpheusd.core.worker import TRANSITIONS as PROCESS
from orpheusd.diagrams import page
from orpheusd.wire.worker import MESSAGES, LinkState
from orpheusd.wire.worker import TRANSITIONS as LINK

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "lifecycles.md"
SECTIONS: list[tuple[str, Mapping[Any, tuple[Enum, ...]]]] = [
    ("Worker and template", PROCESS), ("Run", RUN), ("Agent", AGENT)]


def test_the_page_is_the_one_that_is_made_of_the_tables() -> None:
    assert DOCUMENT.read_text() == page(), "run: python -m orpheusd.diagrams > docs/lifecycles.md"


@pytest.mark.parametrize(("heading", "table"), SECTIONS)
def test_diagram_and_table_have_every_move_and_no_other(heading: str, table: Mapping[Any, tuple[Enum, ...]]) -> None:
    moves = {(state.value, to.value) for state, following in table.items() for to in following}
    assert drawn(heading) == moves
    assert listed(heading) == moves
    assert initial(heading) == next(iter(table)).value


def test_the_link_moves_by_its_messages() -> None:
    moves = {(state.value, to.value) for type, to in LINK.items() for state in MESSAGES[type].states}
    assert drawn("Link") == listed("Link") == moves
    assert initial("Link") == LinkState.CONNECTED.value
    assert all(f": {type}\n" in section("Link") for type in LINK)


def drawn(heading: str) -> set[tuple[str, str]]:
    """The arrows of a section's diagram between two states."""
    found = re.findall(r"^    (\w+) --> (\w+)", section(heading), re.MULTILINE)
    return {(left.replace("_", "-"), right.replace("_", "-")) for left, right in found}


def listed(heading: str) -> set[tuple[str, str]]:
    """The moves of a section's table."""
    moves = set()
    for line in section(heading).splitlines():
        if line.startswith("| `"):
            state, following = line.split("|")[1:3]
            moves |= {(state.strip(" `"), to) for to in re.findall(r"`([\w-]+)`", following)}
    return moves


def initial(heading: str) -> str:
    return str(re.findall(r"\[\*\] --> (\w+)", section(heading))[0])


def section(heading: str) -> str:
    return DOCUMENT.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
