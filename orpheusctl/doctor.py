"""`orpheusctl doctor`: the findings of the daemon, or, when none answers, of the daemon's own checks run as a program
here (as `validate` does). What is checked, and what it means, is not known here.
"""

import json
import subprocess
import sys
from typing import Any

from orpheusctl import client
from orpheusctl.output import Output
from orpheusctl.parser import Call
from orpheusctl.validate import environment
from orpheusd.errors import OrpheusError

#: The checks try bubblewrap once, and read; they have this long where there is no daemon to keep a deadline.
DEADLINE_S = 30


def execute(call: Call, output: Output) -> int:
    try:
        with client.connect(call.arguments.socket) as daemon:
            findings, told_by = daemon.call("doctor", {})["findings"], "daemon"
    except OrpheusError as error:
        if error.code != "unreachable":
            raise
        output.note(f"{error.message}\nThese are the findings for a daemon that you would start here:")
        findings, told_by = _own_findings(), "here"
    if output.json_wanted:
        output.json({"told_by": told_by, "findings": findings})
    else:
        for finding in findings:
            _show(finding, output)
    return 1 if any(finding["state"] == "missing" for finding in findings) else 0


def _own_findings() -> list[dict[str, Any]]:
    command = [sys.executable, "-P", "-m", "orpheusd.doctor"]
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired) as error:
        said = done.stderr.strip() if isinstance(error, ValueError) else f"no answer within {DEADLINE_S} s"
        raise OrpheusError("internal", f"the checks failed: {said}") from None
    return found


def _show(finding: dict[str, Any], output: Output) -> None:
    output.line(f"{finding['state']:8}{finding['check']}: {finding['found']}")
    if finding["state"] != "ok":
        output.line(f"        means: {finding['means']}")
        output.line(f"        fix: {finding['fix']}")
