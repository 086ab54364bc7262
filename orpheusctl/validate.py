"""`orpheusctl validate`: runs the daemon's own checker as a program, here, without a daemon.

It knows nothing of agent.yaml: the checker prints, and its exit code is the command's.
"""

import os
import subprocess
import sys
from pathlib import Path

import orpheusd.errors
from orpheusctl.output import Output
from orpheusctl.parser import Call


def execute(call: Call, output: Output) -> int:
    command = [sys.executable, "-P", "-m", "orpheusd.deploy.validate", str(Path(call.arguments.path).absolute())]
    if output.json_wanted:
        command.append("--json")
    status = subprocess.run(command, env=environment(), check=False).returncode
    return status if status >= 0 else 128 - status


def environment() -> dict[str, str]:
    """Ours, with the place of this package added: -P keeps the agent's own files from being imported as ours."""
    place = Path(orpheusd.errors.__file__).absolute().parent.parent
    paths = [str(place), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
