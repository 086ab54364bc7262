"""Read a whole run log, in use or not, and say whether it is as it was written.

`python -m orpheusd.runlog.verify PATH` prints one line of JSON and exits with 0, with 1 when the log is damaged, with
2 when it could not be read. Made to run as a process of its own, beside the daemon: it takes the time it takes.
"""

import json
import sqlite3
import sys
from pathlib import Path

from orpheusd.runlog import mark, place
from orpheusd.runlog.inspection import Inspection, inspect


def verify(path: Path) -> Inspection:
    """Raises OSError or sqlite3.Error when it cannot be read."""
    # The mark first: the log only moves on from it.
    reading = mark.read(place.mark_of(path))
    if reading.record is None:
        return Inspection("its high-water mark is unreadable")
    return inspect(path, reading.record, None)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m orpheusd.runlog.verify PATH", file=sys.stderr)
        return 2
    try:
        found = verify(Path(arguments[0]))
    except (OSError, sqlite3.Error) as error:
        print(json.dumps({"error": f"cannot read {arguments[0]}: {error}"}))
        return 2
    rows = found.head.row_count if found.head is not None else None
    print(json.dumps({"whole": found.whole, "problem": found.problem, "rows": rows}))
    return 1 if found.problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
