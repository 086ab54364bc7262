"""Imports an agent's module and says how that went: the child's side of `importcheck`.

It runs in the agent's interpreter, beside the agent's code: standard library and the worker's own code only,
so that what is said here is what a deploy would say.
"""

import json
import os
import sys
import traceback
from typing import Any, NamedTuple

from orpheusd.worker import failures, handler
from orpheusd.worker.confinement import confine
from orpheusd.worker.launch import Setup


class Outcome(NamedTuple):
    """How the import went. `ok`, or why not, in which file and line, and what could be the cause."""

    ok: bool
    message: str = ""
    file: str = ""
    line: int = 0
    missing_module: str = ""
    missing_env: tuple[str, ...] = ()


def answer(facts: dict[str, Any], missing_env: list[str]) -> None:
    """Writes an `Outcome` to stdout as JSON and ends the process. What the module prints goes nowhere."""
    told = os.dup(1)
    os.dup2(2, 1)
    code_dir = facts["code_dir"]
    setup = Setup(
        agent=facts["name"], version=0, module=facts["module"], entrypoint=facts["entrypoint"],
        concurrency=facts["concurrency"], preload=False, env={}, code_dir=code_dir,
        workspace_dir=facts["workspace_dir"], result_limit_bytes=0, orphan_ttl_s=0.0, isolation="none")
    sys.path.insert(0, code_dir)
    try:
        confine(sandboxed=False)
        handler.load(setup)
        outcome = Outcome(True)
    except handler.UnusableHandler as error:
        outcome = Outcome(False, str(error))
    except BaseException as error:
        outcome = _failed(error, code_dir)
    outcome = outcome._replace(missing_env=tuple(missing_env))
    os.write(told, json.dumps(outcome._asdict()).encode())
    os._exit(0)  # whatever threads and exit handlers the module has left


def _failed(error: BaseException, code_dir: str) -> Outcome:
    described = json.loads(failures.describe(error))
    own = [frame for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename.startswith(f"{code_dir}/")]
    place = (own[-1].filename.removeprefix(f"{code_dir}/"), own[-1].lineno or 0) if own else ("", 0)
    if isinstance(error, SyntaxError) and str(error.filename).startswith(f"{code_dir}/"):
        place = (str(error.filename).removeprefix(f"{code_dir}/"), error.lineno or 0)
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    return Outcome(False, f"{described['type']}: {described['message']}", *place, missing_module=name)
