"""docs/worker-protocol.md says what the table in orpheusd/wire/worker.py says, row for row."""

from pathlib import Path

from orpheusd.wire.worker import ENDED_STATES, FRAME_LIMIT_BYTES, MESSAGES, PROTOCOL_VERSION, LinkState, Row

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "worker-protocol.md"
NAMES = {str: "text", int: "integer", float: "", bool: "boolean", type(None): "null", list: "array", dict: "object"}


def test_the_messages_of_the_document_are_those_of_the_table() -> None:
    assert rows_of("Messages") == [row_of(type, row) for type, row in MESSAGES.items()]


def test_the_ends_of_a_run_are_those_of_the_table() -> None:
    assert rows_of("How a run ends") == [
        f"| `{state}` | {', '.join(f'`{code}`' for code in codes if code) or 'empty'} |"
        for state, codes in ENDED_STATES.items()]


def test_the_numbers_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert f"version {PROTOCOL_VERSION}" in text
    assert f"{FRAME_LIMIT_BYTES // (1 << 20)} MiB" in text
    assert all(f"`{state.value}`" in text for state in LinkState)


def row_of(type: str, row: Row) -> str:
    senders = ", ".join(role.value for role in row.senders)
    states = ", ".join(state.value for state in row.states)
    fields = ", ".join(f"`{name}` {types_of(types)}" for name, types in row.fields.items())
    return f"| `{type}` | {senders} | {states} | {fields} | {'yes' if row.payload else ''} | {row.meaning} |"


def types_of(types: tuple[type, ...]) -> str:
    if float in types:
        return " or ".join(["number", *(["null"] if type(None) in types else [])])
    return " or ".join(NAMES[type] for type in types)


def rows_of(heading: str) -> list[str]:
    """The lines of the first table under a heading, without its head."""
    section = DOCUMENT.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]
