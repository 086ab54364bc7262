"""Runs as callers ask for them: waited for or detached, under a key or not, shown, awaited and retried.

It turns parameters into requests to the engine and outcomes into answers. A plain run costs one call here; only what
asks for more (a key, the log) becomes a coroutine.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

import orjson

from orpheusd.answers import Acceptance, Announcement, Call, accepted, answer_run, outcome_of
from orpheusd.commits import Commits
from orpheusd.core import events as ev
from orpheusd.detached import requested_again
from orpheusd.engine import Engine
from orpheusd.errors import OrpheusError
from orpheusd.keys import KEPT_S, Bound, Claim, Keys, fingerprint
from orpheusd.operations import INPUT_LIMIT_BYTES
from orpheusd.outcome import Outcome
from orpheusd.pending import Pending
from orpheusd.quotas import Quotas
from orpheusd.recorder import Key, Recorder, described
from orpheusd.runlog.rows import RunDetail

#: How long what the daemon knows of a run may take to be in the log, so that whoever was just told of it can ask.
COMMIT_S = 1.0

Params = dict[str, Any]


class Manner(NamedTuple):
    """How the caller wants to hear of the run."""

    stream: bool = False
    detach: bool = False
    cancel_on_disconnect: bool = False


class Runs:
    """Invariant: every call is answered or refused exactly once, unless its caller leaves."""

    def __init__(self, engine: Engine, recorder: Recorder, quotas: Quotas) -> None:
        self._engine = engine
        self._quotas = quotas
        self._recorder = recorder
        self._keys = Keys()
        self._reloading: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def let_watchers_go(self) -> None:
        """Let nobody wait any longer for the end of another's run: the next image can be asked as well."""
        _set(self._reloading, True)

    def run(self, call: Call, params: Params, session_id: str | None) -> Coroutine[Any, Any, None] | None:
        """None, or a coroutine when the log must be asked first. `session_id` is the one of the whole request."""
        input = params["input"]
        if session_id is not None and isinstance(input, dict):
            inside = input.get("session_id", session_id)
            if inside != session_id:
                raise OrpheusError("invalid-request", "the session id beside the input and the one in it differ; "
                                                      "leave out `session_id` in the input")
        manner = Manner(params["stream"], params["detach"], params["cancel_on_disconnect"])
        if manner.detach and (manner.stream or manner.cancel_on_disconnect):
            raise OrpheusError("invalid-request", "who detaches from a run does not wait for it: `detach` excludes "
                                                  "`stream` and `cancel_on_disconnect`")
        payload = _input_payload(input)
        event = ev.RunRequested(
            new_run_id(), params["agent"], session_id, params["affinity"], params["overlap"],
            params["require"] == "warm", params["timeout_s"], input_bytes=len(payload))
        if params["idempotency_key"] is not None:
            key = Key(params["idempotency_key"], fingerprint(event, input))
            return self._run_once(call, event, payload, manner, key)
        self._start(call, event, payload, manner)
        return None

    async def retry(self, call: Call, run_id: str, stream: bool) -> None:
        """Run what an earlier run was given, as a run of its own."""
        detail = await self._row(run_id)
        if detail.run.ended_at is None:
            raise OrpheusError("conflict", f"run {run_id} is {detail.run.state}: only a run that has ended can be "
                                           "retried; wait for it with `orpheusctl attach`, or cancel it")
        if detail.input is None or detail.run.input_truncated or detail.damaged:
            raise OrpheusError("conflict", f"the input of run {run_id} ({detail.run.input_bytes} bytes) was not kept "
                                           "whole in the run log; send it again with `orpheusctl run`")
        event = requested_again(detail)._replace(run=new_run_id(), readmitted=False)
        self._start(call, event, detail.input, Manner(stream))

    def show(self, call: Call, run_id: str, wait_s: float) -> Coroutine[Any, Any, dict[str, Any]]:
        """What the log has of the run; with `wait_s`, once it has its end or so much time has passed."""
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if wait_s and call.source == "http":
            # a client of the control socket that has said all it wants to say may still wait
            call.on_gone(partial(_set, left, True))
        return self._show(run_id, wait_s, left)

    async def _show(self, run_id: str, wait_s: float, left: "asyncio.Future[None]") -> dict[str, Any]:
        if not wait_s:
            return described(await self._row(run_id))
        detail = await self._once(self._engine.ends, run_id, _is_over, wait_s, self._reloading, left)
        return described(_found(run_id, detail))

    def queue_again(self) -> None:
        """Queue what an earlier daemon accepted and never started, in the order of its acceptance."""
        left = self._recorder.accepted_before
        inputs = self._recorder.inputs([one.run.run_id for one in left])
        for one in left:
            run, on_outcome = one.run, _nobody
            key = claim = None
            if one.idempotency_key is not None and one.fingerprint is not None:
                key = Key(one.idempotency_key, one.fingerprint)
                claim = self._keys.claim(run.agent, key.name)
                on_outcome = partial(self._over, run.agent, key, claim, on_outcome)
            self._engine.start_again(requested_again(one), Pending(
                inputs[run.run_id], run.source, run.caller, on_outcome, None, True, key))
            if key is not None and claim is not None:
                self._bind(run.agent, run.run_id, key, claim)

    def _start(
        self, call: Call, event: ev.RunRequested, payload: bytes, manner: Manner, key: Key | None = None,
        claim: Claim | None = None,
    ) -> None:  # fmt: skip
        self._quotas.admit(event.agent)
        on_outcome: Callable[[Outcome], None] = partial(answer_run, call)
        acceptance: Acceptance | None = None
        announcement: Announcement | None = None
        if manner.detach:
            acceptance = Acceptance(call, event)
            on_outcome = acceptance.over
        elif manner.stream:
            announcement = Announcement(call, event.run, on_outcome)
            on_outcome = announcement.over
        if key is not None and claim is not None:
            on_outcome = partial(self._over, event.agent, key, claim, on_outcome)
        on_event = announcement.event if announcement is not None else None
        self._engine.start_run(event, Pending(
            payload, call.source, call.caller, on_outcome, on_event, manner.detach, key))
        first = acceptance or announcement
        if first is not None and not first.given:
            self._engine.acceptances.when(event.run, first.written)
        if key is not None and claim is not None:
            self._bind(event.agent, event.run, key, claim)
        if manner.cancel_on_disconnect and event.run in self._engine.pending:
            call.on_gone(partial(self._abandon, event.run))

    def _abandon(self, run_id: str) -> None:
        if self._going(run_id):
            self._engine.feed(ev.CancelRequested(run_id))

    # Keys

    async def _run_once(
        self, call: Call, event: ev.RunRequested, payload: bytes, manner: Manner, key: Key
    ) -> None:
        """Execute the run unless its key leads to another one, whose answer this caller then gets."""
        claim = self._keys.claim_of(event.agent, key.name)
        if claim is None:
            claim = self._keys.claim(event.agent, key.name)
            try:
                earlier = await self._recorder.asked(event.agent, key.name, time.time() - KEPT_S)
                if earlier is None:
                    self._start(call, event, payload, manner, key, claim)
                    return
            except BaseException as error:
                # nobody may wait for a run that was not begun
                self._keys.release(event.agent, key.name, claim)
                claim.refuse(error)
                raise
            self._keys.release(event.agent, key.name, claim)
            claim.bind(Bound(earlier.run.run_id, earlier.fingerprint or ""))
        bound = await claim.bound()
        if bound.fingerprint != key.fingerprint:
            raise OrpheusError("conflict", f"the idempotency key {key.name} was used for another request (run "
                                           f"{bound.run_id}); a new request needs a new key")
        await self._answer_as(call, event._replace(run=bound.run_id), manner)

    async def _answer_as(self, call: Call, event: ev.RunRequested, manner: Manner) -> None:
        """Answer as the first caller of this run was answered."""
        if manner.detach:
            detail = await self._once(self._engine.acceptances, event.run, _is_there, None)
            Acceptance(call, event).written(detail is not None)
            return
        if manner.stream:
            call.event(accepted(event.run))
        detail = _found(event.run, await self._once(
            self._engine.ends, event.run, _is_over, None, self._reloading))
        if detail.run.ended_at is None and (self._engine.supervisor.stopping or self._reloading.done()):
            raise OrpheusError("draining", f"the daemon is stopping or reloading; run {event.run} is accepted: ask "
                                           "again when the daemon is back", {"request_id": event.run})
        answer_run(call, outcome_of(detail))

    def _bind(self, agent: str, run_id: str, key: Key, claim: Claim) -> None:
        """Let the key lead to the run until the log does."""
        claim.bind(Bound(run_id, key.fingerprint))
        self._engine.ends.when(run_id, lambda _committed: self._keys.release(agent, key.name, claim))

    def _over(self, agent: str, key: Key, claim: Claim, tell: Callable[[Outcome], None], outcome: Outcome) -> None:
        if outcome.worker_id is None:
            # never executed: who asks again under the key asks for a run of its own
            self._keys.release(agent, key.name, claim)
        tell(outcome)

    # The log

    async def _row(self, run_id: str) -> RunDetail:
        """The run's row: with its end when the run has one, also if that was a moment ago."""
        enough = _is_there if self._going(run_id) else _is_over
        return _found(run_id, await self._once(self._engine.ends, run_id, enough, COMMIT_S))

    def _going(self, run_id: str) -> bool:
        return run_id in self._engine.supervisor.runs

    async def _once(
        self, commits: Commits, run_id: str, enough: Callable[[RunDetail | None], bool], wait_s: float | None,
        *no_longer: "asyncio.Future[None]",
    ) -> RunDetail | None:  # fmt: skip
        """The run's row as soon as it is `enough`, which `commits` will tell; at the latest after `wait_s` seconds, or
        when one of `no_longer` is done."""
        told = asyncio.get_running_loop().create_future()
        waiter = partial(_set, told)
        # before the log is read: what is committed after that is told
        commits.when(run_id, waiter)
        try:
            detail = await self._recorder.detail(run_id)
            known = detail is not None or self._going(run_id) or run_id in self._engine.explanations
            if enough(detail) or not known:
                return detail
            await asyncio.wait((told, *no_longer), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            return await self._recorder.detail(run_id)
        finally:
            commits.forget(run_id, waiter)


def new_run_id() -> str:
    """Unique, and sorted by time: milliseconds since the epoch, then 40 random bits."""
    return f"r-{time.time_ns() // 1_000_000:012x}{random.getrandbits(40):010x}"


def _input_payload(input: Any) -> bytes:
    try:
        payload = orjson.dumps(input)
    except orjson.JSONEncodeError as error:
        raise OrpheusError("invalid-request", f"the input cannot be passed on: {error}") from error
    if len(payload) > INPUT_LIMIT_BYTES:
        raise OrpheusError("too-large", f"the input has {len(payload)} bytes of JSON; at most {INPUT_LIMIT_BYTES} may "
                                        "be sent: put large data into the workspace and send its name")
    return payload


def _found(run_id: str, detail: RunDetail | None) -> RunDetail:
    if detail is None:
        raise OrpheusError("not-found", f"the run log has no run {run_id}; it may be too old, or have just begun")
    return detail


def _is_there(detail: RunDetail | None) -> bool:
    return detail is not None


def _is_over(detail: RunDetail | None) -> bool:
    return detail is not None and detail.run.ended_at is not None


def _set(told: "asyncio.Future[None]", _committed: bool) -> None:
    if not told.done():
        told.set_result(None)


def _nobody(outcome: Outcome) -> None:
    """Nobody waits for the end of this run."""
