"""Runs the console sessions of a document: what follows `$ ` is a command, what follows that is its output.

A block that is marked ```console is run, unless the line before it says `<!-- not run: REASON -->`. What is shown as
output must be printed, in that order; a document may leave out lines, and members of JSON objects. Ids, fractions
and times of day are never the same twice: any of the kind will do.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = re.compile(r"(?P<mark>^<!-- not run: .+ -->\n)?^```console\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
#: A command in a document is one that a reader waits for.
TIMEOUT_S = 30
#: A run, worker or template id, whole or cut off with an ellipsis.
ID = re.compile(r"[rwt]-[0-9a-f]+(…|(-\d+)?)")


class Step(NamedTuple):
    """One command and the output the document shows for it."""

    command: str
    output: str


def steps(document: str) -> Iterator[Step]:
    """Every command of the document that is to be run, in order."""
    for block in BLOCK.finditer(document):
        if block["mark"]:
            continue
        for part in re.split(r"^\$ ", block["text"], flags=re.MULTILINE)[1:]:
            lines = part.rstrip("\n").split("\n")
            end = next(number for number, line in enumerate(lines, 1) if not line.endswith("\\"))
            yield Step("\n".join(lines[:end]), "\n".join(lines[end:]))


def run(step: Step, environment: Mapping[str, str], directory: Path) -> str:
    """What the command printed. Raises AssertionError when it fails or prints what the document does not show."""
    done = subprocess.run(["bash", "-c", step.command], cwd=directory, env=dict(environment), capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False)
    told = f"$ {step.command}\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"exit code {done.returncode}: {told}"
    assert matches(done.stdout, step.output), f"{told}\nThe document shows:\n{step.output}"
    return done.stdout


def matches(printed: str, shown: str) -> bool:
    """Whether what was printed has all that the document shows."""
    try:
        return alike(json.loads(printed), json.loads(shown))
    except ValueError:
        left = iter(printed.splitlines())
        # `any` goes on where it stopped for the line before, so the order counts
        return all(any(line_alike(line, expected) for line in left) for expected in shown.splitlines() if expected)


def line_alike(printed: str, shown: str) -> bool:
    """Whether a line is the one shown. JSON in it, up to the end of the line, is compared as JSON."""
    before, brace, rest = shown.partition("{")
    if brace and printed.startswith(before):
        try:
            return alike(json.loads(printed[len(before):]), json.loads(brace + rest))
        except ValueError:
            pass
    return printed.rstrip() == shown.rstrip()


def alike(printed: Any, shown: Any) -> bool:
    """Whether a value is the one shown."""
    if isinstance(shown, dict) and isinstance(printed, dict):
        return all(name in printed and alike(printed[name], value) for name, value in shown.items())
    if isinstance(shown, list) and isinstance(printed, list):
        return len(printed) == len(shown) and all(map(alike, printed, shown))
    if isinstance(shown, float):
        return isinstance(printed, float)
    if isinstance(shown, str) and ID.fullmatch(shown):
        return isinstance(printed, str) and ID.fullmatch(printed) is not None and printed[0] == shown[0]
    return type(printed) is type(shown) and bool(printed == shown)
