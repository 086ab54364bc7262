"""What a target is: a way in, the inputs it starts from, and how one input is sent through it."""

import gzip
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from tests.fuzz.house import House
from tests.tars import END, member

#: Nothing that an input asks for takes longer to be answered, or to be hung up on.
ANSWER_S = 20.0


class Target(Protocol):
    """Invariant: an input is bytes, whole in itself: sent again to another daemon it says the same."""

    name: str
    #: Inputs that are tried on the decoder for each that is sent.
    tries: int

    def seeds(self) -> list[bytes]:
        """Inputs to begin with: each right, or right but for one thing."""

    def mutated(self, dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        """Another input, made of this one and perhaps some of the others."""

    def decode(self, data: bytes) -> object:
        """What the daemon does with the bytes before anything depends on its state: here, in this process.

        It may raise OrpheusError; whatever else it raises would have been the daemon's.
        """

    def prepare(self, house: House) -> None:
        """Deploy what inputs are about, if it is not there (any more)."""

    def send(self, house: House, data: bytes) -> set[str]:
        """Send it to the daemon; what it answered, each answer in few words. Raises Broken."""


def packed(files: Mapping[str, str | bytes]) -> bytes:
    """A bundle of these files, the same bytes each time."""
    data = b"".join(member(name, text.encode() if isinstance(text, str) else text) for name, text in files.items())
    return gzip.compress(data + END, 1, mtime=0)
