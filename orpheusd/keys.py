"""Idempotency keys of runs under way: who asks again under a key is led to the run that was asked for first.

A key is claimed before the log is asked for it, so that of two callers at one moment one executes. From the commit of
the run's end on, the log alone knows it. This file knows nothing of callers and answers.
"""

import asyncio
import hashlib
from typing import Any, NamedTuple

import orjson

from orpheusd.core.events import RunRequested
from orpheusd.errors import OrpheusError

#: How long a run's key leads to its answer.
KEPT_S = 24 * 3600.0


class Bound(NamedTuple):
    """The run that a key leads to, and the fingerprint of what was asked."""

    run_id: str
    fingerprint: str


class Claim:
    """Invariant: it is bound once, or refused once; whoever waits for it is told which."""

    def __init__(self) -> None:
        self._bound: asyncio.Future[Bound] = asyncio.get_running_loop().create_future()

    def bind(self, bound: Bound) -> None:
        self._bound.set_result(bound)

    def refuse(self, error: BaseException) -> None:
        if not isinstance(error, OrpheusError):
            error = OrpheusError("internal", "the request that came first under this idempotency key failed inside "
                                             "the daemon; ask again")
        self._bound.set_exception(error)
        # nobody may be waiting, and an exception that nobody looked at is a fault
        self._bound.exception()

    async def bound(self) -> Bound:
        return await asyncio.shield(self._bound)


class Keys:
    """Invariant: at most one claim for each agent and key; a run that was never executed holds none."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, str], Claim] = {}

    def claim_of(self, agent: str, name: str) -> Claim | None:
        return self._claims.get((agent, name))

    def claim(self, agent: str, name: str) -> Claim:
        claim = self._claims[agent, name] = Claim()
        return claim

    def release(self, agent: str, name: str, claim: Claim) -> None:
        """The claim holds no more; harmless when it was released before."""
        if self._claims.get((agent, name)) is claim:
            del self._claims[agent, name]


def fingerprint(event: RunRequested, input: Any) -> str:
    """Of what is asked: the same for the same agent, session, options and input, whatever order its keys are in.
    Raises OrpheusError(invalid-request) when the input is nested one level short of what cannot be passed on."""
    asked = [event.agent, event.session, event.affinity, event.overlap, event.require_warm, event.timeout_s, input]
    try:
        text = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise OrpheusError("invalid-request", f"the input cannot be told from others by a key: {error}") from error
    return hashlib.sha256(text).hexdigest()
