"""Line framing: a frame is one line, ended by a newline, of at most `limit_bytes` bytes.

It knows nothing of what a line says. The limit is counted while bytes arrive, so that a peer cannot make
us hold more than `limit_bytes` plus one read.
"""


class FrameTooLong(Exception):
    """The peer sent more than `limit_bytes` without a newline."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"a frame is longer than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class LineBuffer:
    """Cuts a byte stream into lines.

    Invariant: `_partial` holds no newline and never more than `limit_bytes` bytes between calls.
    """

    __slots__ = ("_partial", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._partial = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The complete lines that `data` finishes, without their newlines.

        Raises FrameTooLong; the stream is of no use after that.
        """
        lines = data.split(b"\n")
        rest = lines.pop()
        if self._partial:
            if lines:
                self._partial += lines[0]
                lines[0] = bytes(self._partial)
                self._partial = bytearray(rest)
            else:
                self._partial += rest
        elif rest:
            self._partial += rest
        limit = self.limit_bytes
        if len(self._partial) > limit or (lines and len(lines[0]) > limit) or (
                len(data) > limit and any(len(line) > limit for line in lines)):
            raise FrameTooLong(limit)
        return lines

    @property
    def partial(self) -> bytes:
        """A line that has begun and not ended."""
        return bytes(self._partial)

    @property
    def pending_bytes(self) -> int:
        """Bytes of a line that has begun and not ended."""
        return len(self._partial)
