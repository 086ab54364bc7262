"""What a command prints: the answer to stdout and nothing else there; context, progress and errors to stderr.

It decides between the forms (JSON, drawn tables for a terminal, tab-separated text for scripts) and makes text
of agents safe. What an answer means is the commands' business; drawing is `render.py`'s, loaded when needed.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from orpheusctl import escape, units
from orpheusd.errors import OrpheusError

if TYPE_CHECKING:
    from orpheusctl import render

Row = dict[str, Any]


class Output:
    """The two streams of a command. Invariant: what came from an agent is escaped before it is written."""

    def __init__(self, prog: str, json_wanted: bool = False, colour: bool = True, verbose: bool = False) -> None:
        self.prog = prog
        self.json_wanted = json_wanted
        self.verbose = verbose
        self.stdout = _utf8(sys.stdout)
        self.stderr = _utf8(sys.stderr)
        capable = os.environ.get("TERM", "dumb") != "dumb"
        self.draws = capable and self.stdout.isatty()
        self.draws_progress = capable and self.stderr.isatty()
        self.colour = colour and not os.environ.get("NO_COLOR")

    # -- the answer ------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """One line of the answer, flushed: whoever reads may be waiting for it."""
        self.stdout.write(escape.one_line(text) + "\n")
        self.stdout.flush()

    def json(self, value: Any) -> None:
        """The answer as JSON: indented on a terminal, one line otherwise."""
        self._write_json(value, indent=2 if self.stdout.isatty() else None)

    def json_line(self, value: Any) -> None:
        """One of many JSON answers, each a line."""
        self._write_json(value, indent=None)

    def table(self, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Rows of one kind. Tab-separated under a line of names unless it is drawn."""
        if self.draws:
            self._render().table(columns, rows)
            return
        print(*columns, sep="\t", file=self.stdout)
        for row in rows:
            print(*(units.plain(row.get(column)) for column in columns), sep="\t", file=self.stdout)

    def facts(self, value: Row) -> None:
        """One object. Lines of `path<TAB>value` unless it is drawn."""
        if self.draws:
            self._render().facts(value)
            return
        for path, fact in flattened(value):
            print(path, units.plain(fact), sep="\t", file=self.stdout)

    def log_row(self, row: Row) -> None:
        """One line that a worker printed."""
        if self.draws:
            self._render().log_row(row)
        else:
            fields = [row.get("worker_id"), row.get("run_id"), row.get("session_id"), row.get("stream")]
            text = escape.one_line(str(row.get("text", "")))
            print(units.iso(float(row.get("time") or 0)), *map(units.plain, fields), text, sep="\t", file=self.stdout)
        self.stdout.flush()

    # -- beside the answer -----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Context, progress or a hint, for whoever watches."""
        self.stderr.write(escape.lines(text) + "\n")
        self.stderr.flush()

    def error(self, error: OrpheusError) -> None:
        """A failure: message, the agent's traceback, code. With --json also the HTTP body, on stdout."""
        if self.json_wanted:
            self._write_json(error_body(error), indent=2 if self.stdout.isatty() else None)
        details = error.details
        kind = details.get("error_type") if error.code == "handler-failed" else None
        named = f"{kind}: " if isinstance(kind, str) and kind not in error.message else ""
        self.note(f"{self.prog}: {named}{error.message}")
        traceback = details.get("traceback")
        if isinstance(traceback, str) and traceback and (error.code != "cancelled" or self.verbose):
            self.note(traceback.rstrip("\n"))
        facts = [error.code]
        if details.get("request_id"):
            facts.append(f"run {details['request_id']}")
        if error.retry_after_s is not None:
            facts.append(f"try again in {error.retry_after_s} s")
        self.note(f"  ({', '.join(facts)})")

    def steps(self) -> "PlainSteps | render.Steps":
        """Where a command of several steps shows how far it is."""
        if self.draws_progress:
            from orpheusctl import render  # noqa: PLC0415

            return render.Steps(self.stderr, self.colour)
        return PlainSteps(self)

    def flush(self) -> None:
        self.stdout.flush()

    def _write_json(self, value: Any, indent: int | None) -> None:
        separators = (",", ": ") if indent else (", ", ": ")
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
        self.stdout.write(escape.json_text(text) + "\n")
        self.stdout.flush()

    def _render(self) -> "render.Drawing":
        from orpheusctl import render  # noqa: PLC0415

        return render.drawing(self.stdout, self.colour)


class PlainSteps:
    """Steps as lines. The build's own lines only appear with -v."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def begin(self, step: str, text: str = "") -> None:
        self._output.note(f"{step}: {text}" if text else step)

    def log(self, text: str) -> None:
        if self._output.verbose:
            self._output.note(f"  {text}")

    def end(self, ok: bool) -> None:
        pass


class Fact(NamedTuple):
    """One leaf of an answer and the dotted way to it."""

    path: str
    value: Any


def flattened(value: Row, prefix: str = "") -> Iterable[Fact]:
    """The leaves of an object, in order. Rows in a list are named by their `id` or `worker_id`."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flattened(item, f"{prefix}{key}.")
        elif isinstance(item, list) and item and all(isinstance(row, dict) for row in item):
            for number, row in enumerate(item):
                name = row.get("id") or row.get("worker_id") or number
                rest = {field: fact for field, fact in row.items() if field not in ("id", "worker_id")}
                yield from flattened(rest, f"{prefix}{key}.{escape.one_line(str(name))}.")
        else:
            yield Fact(prefix + key, item)


def error_body(error: OrpheusError) -> Row:
    """What the HTTP door answers for the same failure."""
    return {"error": error.message, "code": error.code, **error.details}


def _utf8(stream: TextIO | None) -> TextIO:
    """The stream, writing UTF-8 in any locale. A stream the caller has closed swallows what is written."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="backslashreplace")
    return stream
