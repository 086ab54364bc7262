"""Imports an agent's module as a worker would, in a process of its own with a deadline.

Used on the author's machine, before anything is deployed. It knows how to ask and how long to wait; what is
asked is in `importchild`.
"""

import json
import os
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from orpheusd.agents import Manifest
from orpheusd.config import environ_behind
from orpheusd.deploy.importchild import Outcome
from orpheusd.process import survivors
from orpheusd.process.pidfds import PidFd
from orpheusd.process.sandbox import SANDBOX_TAG

#: What the daemon gives a worker to start.
DEADLINE_S = 30.0

#: The child sets its own environment before anything of the agent's is imported. Values come over stdin.
_CHILD = """
import json, os, sys
facts = json.load(sys.stdin)
missing = [name for name, value in facts["env"].items() if value is None and name not in os.environ]
os.environ.update({name: value for name, value in facts["env"].items() if value is not None})
sys.path.append(facts["lib"])
from orpheusd.deploy.importchild import answer
answer(facts, missing)
"""


def run(code_dir: Path, manifest: Manifest, python: Path, deadline_s: float = DEADLINE_S) -> Outcome:
    """Imports the module of the agent in `code_dir` and looks at its entrypoint; runs nothing else of it."""
    module = manifest.module_name
    tag = f"{SANDBOX_TAG}=check-{os.getpid()}-{os.urandom(4).hex()}"
    with tempfile.TemporaryDirectory(prefix="orpheus-check-") as workspace:
        facts = {
            "lib": str(Path(__file__).resolve().parents[2]), "code_dir": str(code_dir), "workspace_dir": workspace,
            "module": module, "entrypoint": manifest.entrypoint, "concurrency": manifest.concurrency,
            "name": manifest.name, "env": {**manifest.env, "WORKSPACE_DIR": workspace},
        }
        process = subprocess.Popen(
            [str(python), "-I", "-B", "-c", _CHILD], cwd=code_dir, env=environ_behind(tag),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        hangs = False
        try:
            with closing(PidFd(process.pid)) as held:
                held.make_expendable()  # it has started nothing: it waits for its input
            said, _ = process.communicate(json.dumps(facts).encode(), timeout=deadline_s)
        except subprocess.TimeoutExpired as error:
            said, hangs = error.output or b"", process.poll() is None
        finally:
            survivors.kill_once(tag)
            process.kill()
            code = process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
    if hangs:
        return Outcome(False, f"importing {module} is not done after {deadline_s:g} s; a worker would be killed. "
                       "Move what is slow or waits into the handler")
    try:
        return Outcome(**{**json.loads(said), "missing_env": tuple(json.loads(said)["missing_env"])})
    except (ValueError, KeyError, TypeError):
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return Outcome(False, f"importing {module} ended the process ({how}); a module must not exit at import")
