"""The reading of one connection, which several may hold back."""

import asyncio


class Reading:
    """Invariant: the transport reads exactly while nobody holds it back, unless it is closing."""

    __slots__ = ("_held_by", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held_by: set[object] = set()

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    def hold(self, by: object) -> None:
        if not self._held_by and not self.closing:
            self._transport.pause_reading()
        self._held_by.add(by)

    def go_on(self, by: object) -> None:
        if by in self._held_by:
            self._held_by.remove(by)
            if not self._held_by and not self.closing:
                self._transport.resume_reading()
