"""Where waiting runs stand: a lane for each session, in order of arrival, and one for each run without a session."""

from collections import deque
from typing import TYPE_CHECKING

from orpheusd.core.run import Run
from orpheusd.core.worker import Worker

if TYPE_CHECKING:
    from orpheusd.core.agent import Agent


class Lane:
    """Runs of one session that wait, or one run without a session.

    Invariant: not empty while the agent knows it. `ticket` orders lanes by the time they took their place. Patience
    with the home does not begin before `patient_from`.
    """

    __slots__ = ("agent", "home", "key", "parked", "patience_at", "patient_from", "runs", "session", "ticket")

    def __init__(self, agent: "Agent", key: str, session: str | None) -> None:
        self.agent = agent
        self.key = key
        self.session = session
        self.runs: deque[Run] = deque()
        self.ticket = 0
        self.home: Worker | None = None
        self.patient_from = 0.0
        self.parked = False
        self.patience_at = 0.0
