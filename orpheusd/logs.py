"""What agents print: one file of JSON lines per agent, bounded, and whoever follows it.

Lines arrive on the event loop and cost it nothing but an append; one thread writes them down in batches and
reads them back. It knows nothing of runs beyond the ids that tag a line.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import orjson

#: Two files of this size are kept for each agent: enough for a bad day, too little to fill a disk.
FILE_LIMIT_BYTES = 8 * 1024 * 1024
#: Lines that wait to be written, over all agents, and their text; beyond that they are dropped and counted.
BACKLOG_LINES, BACKLOG_BYTES = 20_000, 4 * 1024 * 1024
#: Lines that are written at a time: they hold the interpreter for less than a millisecond, and then the loop gets it.
PIECE_LINES = 200
#: How long a line may wait before it is written down, and how much text may wait for that.
FLUSH_S, FLUSH_BYTES = 0.2, 512 * 1024

Row = dict[str, Any]
Follower = Callable[[Row], None]


class AgentLogs:
    """The logs of all agents. Invariant: at most BACKLOG_LINES lines and BACKLOG_BYTES of text, and one line more, are
    held in memory, with those being written. `_taken…` is counted by the loop, `_written…` by the thread.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._backlog: deque[tuple[str, Row]] = deque()
        self._taken_lines = self._taken_bytes = 0
        self._written_lines = self._written_bytes = 0
        self._waiting_bytes = 0
        self._dropped = 0
        self._followers: dict[str, list[Follower]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="logs")

    def append(self, agent: str, row: Row) -> None:
        for follower in self._followers.get(agent, ()):
            follower(row)
        if (self._taken_lines - self._written_lines >= BACKLOG_LINES
                or self._taken_bytes - self._written_bytes >= BACKLOG_BYTES):
            self._dropped += 1
            return
        self._taken_lines += 1
        self._taken_bytes += len(row["text"])
        self._waiting_bytes += len(row["text"])
        self._backlog.append((agent, row))
        if self._waiting_bytes > FLUSH_BYTES:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def follow(self, agent: str, follower: Follower) -> Callable[[], None]:
        """Call `follower` with every line from now on, until the returned function is called."""
        self._followers.setdefault(agent, []).append(follower)

        def unfollow() -> None:
            followers = self._followers.get(agent, [])
            if follower in followers:
                followers.remove(follower)
            if not followers:
                self._followers.pop(agent, None)

        return unfollow

    async def tail(
        self, agent: str, limit: int, run_id: str | None, session_id: str | None, tell: Follower
    ) -> Callable[[], None]:
        """Call `tell` with the latest `limit` lines that match, oldest first, then with every line from now on, until
        the returned function is called.
        """
        # followed before it is read, so that no line falls between; those that come meanwhile wait
        early: deque[Row] = deque(maxlen=BACKLOG_LINES)
        unfollow = self.follow(agent, early.append)
        try:
            lines = await self.read(agent, limit, run_id, session_id)
        finally:
            unfollow()
        for row in [*lines, *(row for row in early if row not in lines)]:
            tell(row)
        return self.follow(agent, tell)

    async def read(self, agent: str, limit: int, run_id: str | None, session_id: str | None) -> list[Row]:
        """The latest `limit` lines that match, oldest first."""
        self._flush()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._read, agent, limit, run_id, session_id)

    async def forget(self, agent: str) -> None:
        """Delete an agent's log files."""
        self._flush()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._forget, agent)

    def close(self, timeout_s: float) -> None:
        """Write down what is left, as far as the disk takes it within `timeout_s`: it costs lines, never a run."""
        self._flush()
        wait([self._thread.submit(_nothing_left)], timeout_s)
        self._thread.shutdown(wait=False)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = list(self._backlog)
        self._backlog.clear()
        self._waiting_bytes = 0
        if self._dropped and batch:
            agent, row = batch[-1]
            note = f"({self._dropped} lines were dropped here)"
            batch.append((agent, {**row, "stream": "stderr", "text": note}))
            self._dropped = 0
            self._taken_lines += 1
            self._taken_bytes += len(note)
        if batch:
            self._thread.submit(self._write, batch)

    def _write(self, batch: list[tuple[str, Row]]) -> None:
        for start in range(0, len(batch), PIECE_LINES):
            piece = batch[start:start + PIECE_LINES]
            self._write_piece(piece)
            self._written_lines += len(piece)
            self._written_bytes += sum(len(row["text"]) for _, row in piece)

    def _write_piece(self, piece: list[tuple[str, Row]]) -> None:
        texts: dict[str, list[bytes]] = {}
        for agent, row in piece:
            texts.setdefault(agent, []).append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        for agent, lines in texts.items():
            path, older = self._files(agent)
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if path.exists() and path.stat().st_size > FILE_LIMIT_BYTES:
                    path.replace(older)
                with path.open("ab") as stream:
                    stream.write(b"".join(lines))
            except OSError:
                # a full disk costs log lines, never a run
                self._dropped += len(lines)

    def _read(self, agent: str, limit: int, run_id: str | None, session_id: str | None) -> list[Row]:
        found: deque[Row] = deque(maxlen=limit)
        for path in reversed(self._files(agent)):
            try:
                lines = path.read_bytes().split(b"\n")
            except OSError:
                continue
            for line in lines if run_id or session_id else lines[-limit - 1 :]:
                row = _row(line)
                if row is not None and run_id in (None, row["run_id"]) and session_id in (None, row["session_id"]):
                    found.append(row)
        return list(found)

    def _forget(self, agent: str) -> None:
        for path in self._files(agent):
            path.unlink(missing_ok=True)

    def _files(self, agent: str) -> tuple[Path, Path]:
        folder = self._directory / agent
        return folder / "log.jsonl", folder / "log.1.jsonl"


def _row(line: bytes) -> Row | None:
    """A line as it was written, or None for one that was cut."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _nothing_left() -> None:
    """Done in the thread once all that came before it is."""
