"""A conversation kept on disk: /workspace outlives the worker, a redeploy and a restart of the daemon."""

import json
import os
from pathlib import Path

# /workspace inside the sandbox; without bubblewrap the variable names the real directory.
SESSIONS = Path(os.environ.get("WORKSPACE_DIR", "/workspace")) / "sessions"


def handler(input_data):
    session_id = input_data.get("session_id", "default")
    history = load(session_id)
    history.append(input_data.get("query", ""))
    save(session_id, history)
    return {"response": f"You said: {history[-1]}", "turn": len(history)}


def load(session_id):
    try:
        return json.loads((SESSIONS / f"{session_id}.json").read_text())
    except FileNotFoundError:
        return []


def save(session_id, history):
    SESSIONS.mkdir(parents=True, exist_ok=True)
    # The process id keeps two workers apart; the rename makes a reader see the old file or the new one, whole.
    draft = SESSIONS / f".{session_id}.{os.getpid()}.tmp"
    draft.write_text(json.dumps(history))
    draft.replace(SESSIONS / f"{session_id}.json")
