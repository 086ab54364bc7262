"""One rule for all lifecycles: a table says which moves exist, and any other move is our own mistake."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol, TypeVar

S = TypeVar("S", bound=Enum)


class IllegalMove(Exception):
    """The core tried a move its own table does not have. The supervisor adds the object's story."""

    def __init__(self, subject: str, state: Enum, wanted: Enum) -> None:
        super().__init__(f"{subject} is {state.name} and cannot become {wanted.name}")
        self.subject = subject


class Stateful(Protocol):
    id: str
    state: Any


def move(subject: Stateful, table: Mapping[S, tuple[S, ...]], state: S) -> None:
    """Put `subject` into `state`. Raises IllegalMove."""
    if state not in table[subject.state]:
        raise IllegalMove(subject.id, subject.state, state)
    subject.state = state
