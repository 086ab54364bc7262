"""Drawing on a terminal: tables, facts, log lines and the steps of a deployment.

The only file that imports rich, which costs more than a whole run: it is imported when something is drawn.
It knows no command and asks the daemon nothing.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from orpheusctl import escape, units

#: States and contexts that deserve a look, and those that are as they should be.
_STYLES = {
    "active": "green", "ready": "green", "warm": "green", "new": "green", "restored": "yellow",
    "paused": "yellow", "draining": "yellow", "starting": "yellow", "spilled": "yellow", "stopping": "yellow",
    "quarantined": "bold red", "lost": "bold red", "killing": "red",
}


class Drawing:
    """A terminal to draw on. Invariant: cells are plain text, never markup, whatever an agent calls itself."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def table(self, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
        self._console.print(_table(columns, rows))

    def facts(self, value: dict[str, Any]) -> None:
        """An object: its plain fields, then each object within it, then each list of rows as a table."""
        self._fields("", {key: item for key, item in value.items() if not _nested(item)})
        for key, item in value.items():
            if isinstance(item, dict) and item:
                self._fields(units.title(key), item)
        for key, item in value.items():
            if _rows(item):
                self._console.print(Text(units.title(key), style="bold"))
                self._console.print(_table(list(item[0]), item))

    def log_row(self, row: dict[str, Any]) -> None:
        line = Text()
        line.append(units.clock(float(row.get("time") or 0)), style="dim")
        line.append(f" {units.plain(row.get('worker_id'))}", style="cyan")
        for name in ("run_id", "session_id"):
            if row.get(name):
                line.append(f" {units.plain(row[name])}", style="dim")
        text = escape.one_line(str(row.get("text", "")))
        line.append(f" {text}", style="red" if row.get("stream") == "stderr" else "")
        self._console.print(line, soft_wrap=True)

    def _fields(self, heading: str, fields: dict[str, Any]) -> None:
        if not fields:
            return
        if heading:
            self._console.print(Text(heading, style="bold"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column(overflow="fold")
        for key, item in fields.items():
            text = units.human(key, item)
            grid.add_row(f"  {units.title(key)}" if heading else units.title(key), Text(text, style=_style(text)))
        self._console.print(grid)


class Steps:
    """The steps of a deployment: those done as lines, the one going on as a spinner with its latest line."""

    def __init__(self, stream: TextIO, colour: bool) -> None:
        self._console = _console(stream, colour)
        self._status: Status | None = None
        self._step = ""
        self._text = ""
        self._began_at = 0.0

    def begin(self, step: str, text: str = "") -> None:
        if step != self._step:
            self.end(ok=True)
            self._step, self._text, self._began_at = step, text, time.monotonic()
            self._status = self._console.status(self._line())
            self._status.start()
        elif text:
            self._text = text
            self._show()

    def log(self, text: str) -> None:
        self._show(text)

    def end(self, ok: bool) -> None:
        if self._status is None:
            return
        self._status.stop()
        self._status = None
        took = units.duration(time.monotonic() - self._began_at)
        mark = Text("✓ ", style="green") if ok else Text("✗ ", style="bold red")
        self._console.print(mark + self._line() + Text(f" ({took})", style="dim"))
        self._step = ""

    def _line(self, latest: str = "") -> Text:
        line = Text()
        line.append(f"{self._step:<7}", style="bold")
        line.append(f" {escape.one_line(self._text)}")
        if latest:
            line.append(f"  {escape.one_line(latest)[:60]}", style="dim")
        return line

    def _show(self, latest: str = "") -> None:
        if self._status is not None:
            self._status.update(self._line(latest))


def drawing(stream: TextIO, colour: bool) -> Drawing:
    return Drawing(_console(stream, colour))


def _console(stream: TextIO, colour: bool) -> Console:
    return Console(file=stream, color_system="auto" if colour else None, highlight=False, markup=False, emoji=False)


#: What is copied into the next command must stand in one piece, however narrow the terminal.
_WHOLE = frozenset(("when", "run_id", "id", "home", "worker_id", "pid", "name", "state", "context"))


def _table(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> Table:
    rows = list(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = bool(rows) and all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(units.title(column).upper(), justify="right" if numeric else "left", overflow="fold",
                         no_wrap=column in _WHOLE)
    for row in rows:
        texts = [units.human(column, row.get(column)) for column in columns]
        table.add_row(*(Text(text, style=_style(text)) for text in texts))
    return table


def _style(text: str) -> str:
    return _STYLES.get(text.lower(), "")


def _rows(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(row, dict) for row in item)


def _nested(item: Any) -> bool:
    return isinstance(item, dict) or _rows(item)
