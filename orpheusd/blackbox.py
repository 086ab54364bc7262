"""The black box: what is kept of a worker for the record of a run that its death ends.

While the worker lives these are its last lines; once it is dead, what it left. It is told everything, and looks up
nothing.
"""

from collections import deque
from typing import Any

from orpheusd.process.remains import Remains

#: What somebody reads who wants to know what a worker did last; of each line, characters. The log has the rest.
KEPT_LINES = 50
LINE_LIMIT = 1024


class BlackBoxes:
    """Invariant: at most KEPT_LINES lines a worker, none from after its death, and nothing of a forgotten one."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[dict[str, str]]] = {}
        self._remains: dict[str, Remains] = {}

    def line(self, worker_id: str, stream: str, text: str) -> None:
        """The worker has printed this."""
        if worker_id not in self._remains:
            lines = self._lines.get(worker_id)
            if lines is None:
                lines = self._lines[worker_id] = deque(maxlen=KEPT_LINES)
            lines.append({"stream": stream, "text": text[:LINE_LIMIT]})

    def died(self, worker_id: str, remains: Remains) -> None:
        self._remains[worker_id] = remains

    def of(self, worker_id: str, cause: str) -> dict[str, Any]:
        """The box of a worker whose death is the `cause` of a run's end. One that the kernel does not let go has left
        nothing yet but its lines."""
        remains = self._remains.get(worker_id)
        return {
            "cause": cause,
            "stack": remains.stack if remains is not None else "",
            "peak_rss_bytes": remains.peak_rss_bytes if remains is not None else 0,
            "log": list(self._lines.get(worker_id, ())),
        }

    def forget(self, worker_id: str) -> None:
        self._lines.pop(worker_id, None)
        self._remains.pop(worker_id, None)
