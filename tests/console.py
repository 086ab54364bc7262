"""Runs the console sessions of a document: what follows `$ ` is a command, what follows that is its output.

A block that is marked ```console is run, unless the line before it says `<!-- not run: REASON -->`. Output is
compared as JSON where it is JSON; a line `...` stands for any lines, and no output at all stands for any output.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"(?P<mark>^<!-- not run: .+ -->\n)?^```console\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
#: A command in a document is one that a reader waits for.
TIMEOUT_S = 60


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
    """Whether what was printed is what the document shows."""
    if not shown.strip():
        return True
    try:
        return bool(json.loads(printed) == json.loads(shown))
    except ValueError:
        pattern = "\n".join(".*" if line.strip() == "..." else re.escape(line) for line in shown.strip().split("\n"))
        return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None
