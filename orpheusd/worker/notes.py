"""What an async worker writes on its stack sheet by itself: where the runs that were told to stop stood then.

faulthandler sees threads, and the one thread of such a worker is in its loop whatever its tasks wait for.
"""

import os
import traceback
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType

from orpheusd.worker.channel import identity_of
from orpheusd.worker.sheet import SHEET_BYTES

#: faulthandler writes from the start of the sheet; the second half is for notes.
NOTES_AT = SHEET_BYTES // 2
#: Awaits within awaits; who is deeper has a recursion.
FRAMES_LIMIT = 100


class Notes:
    """Invariant: the second half of the sheet has what was added and not removed, as far as there is room."""

    def __init__(self, sheet: int) -> None:
        self._sheet = sheet
        self._identity = identity_of(sheet)
        self._texts: dict[str, str] = {}
        self._written_bytes = 0

    def add(self, run_id: str, text: str) -> None:
        self._texts[run_id] = f"Run {run_id}, when it was told to stop (most recent call last):\n{text}"
        self._write()

    def remove(self, run_id: str) -> None:
        if self._texts.pop(run_id, None) is not None:
            self._write()

    def _write(self) -> None:
        data = "\n".join(["", *self._texts.values()]).encode("utf-8", "backslashreplace")[: SHEET_BYTES - NOTES_AT]
        if identity_of(self._sheet) == self._identity:  # else the agent has closed it, and may have a file there
            os.pwrite(self._sheet, data.ljust(self._written_bytes, b"\0"), NOTES_AT)
            self._written_bytes = len(data)


def where(awaited: object) -> str:
    """The stack of something that can be awaited and is, as Python prints stacks."""
    frames: list[FrameType] = []
    while len(frames) < FRAMES_LIMIT:
        # attributes of these types alone: another may say anything when it is asked
        if isinstance(awaited, CoroutineType):
            frame, awaited = awaited.cr_frame, awaited.cr_await
        elif isinstance(awaited, GeneratorType):
            frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
        elif isinstance(awaited, AsyncGeneratorType):
            frame, awaited = awaited.ag_frame, awaited.ag_await
        else:
            break
        if frame is not None:
            frames.append(frame)
    return "".join(traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames).format())
