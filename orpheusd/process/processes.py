"""Templates and workers as processes: started, dialled home, signalled, and proved dead.

It carries out the supervisor's orders about processes and reports what became of them as events. It decides
nothing: not when to start one, nor what its death means.

A worker is reported as exited only after its channel reached EOF and its death was proved, by its pidfd or by
the template that reaped it; a busy loop may otherwise see the exit before the last message.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from orpheusd.core import events as ev
from orpheusd.process.adopted import AdoptedTemplate
from orpheusd.process.causes import error_text
from orpheusd.process.channel import Channel
from orpheusd.process.holdings import SESSIONS_ENDING, orphans_in
from orpheusd.process.limits import Limits
from orpheusd.process.lives import Lives
from orpheusd.process.members import TemplateMember, WorkerMember
from orpheusd.process.monitor import Monitor
from orpheusd.process.plan import Plan
from orpheusd.process.records import Record, new_record
from orpheusd.process.room import Room
from orpheusd.process.sandbox import Interpreter, Isolation, RuntimeLib
from orpheusd.process.sinks import Sinks
from orpheusd.tasks import must_not_fail
from orpheusd.wire.worker import PROTOCOL_VERSION, Message

log = logging.getLogger(__name__)

#: After a worker's death is proved: how long its last words may take, and the template's word on its status.
LAST_WORDS_S = 1.0
STATUS_S = 0.5
#: A process that dies closes its channel first: so long it may be about to, before it is one that only did that.
DYING_S = 0.2
#: What one line of a log may have; a worker cuts earlier, one that lies is cut here.
LOG_TEXT_LIMIT = 16 * 1024

DOORBELL = signal.SIGUSR1


class Processes:
    """Every process of every agent. Invariant: what is in `_templates` or `_workers` has not been reported dead."""

    def __init__(
        self, runtime_dir: Path, isolation: Isolation, interpreter: Interpreter, lib: RuntimeLib, sinks: Sinks
    ) -> None:
        self.monitor = Monitor()
        self.limits = Limits(self._over)
        self.room = Room()
        self._lives = Lives(runtime_dir, isolation, interpreter, lib, self, sinks.note)
        self._sinks = sinks
        self._templates: dict[str, TemplateMember] = {}
        self._workers: dict[str, WorkerMember] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: dict[str, Callable[[Channel, Message], None]] = {
            "ended": self._heard_ended,
            "output": self._heard_output,
            "log": self._heard_log,
            "hello": self._heard_hello,
            "workers": self._heard_workers,
            "sessions": self._heard_holding,
            "held": self._heard_holding,
            "ready": self._heard_ready,
            "failed": self._heard_failed,
            "exited": self._heard_exited,
        }

    # Orders

    def orphans(self) -> list[Record]:
        """The templates of an earlier daemon that may still be there."""
        return self._lives.orphans()

    def adopt_template(self, record: Record, most_sessions: int = 0) -> None:
        """Listen for a template of an earlier daemon, whose agent may have `most_sessions`. Its TemplateAdopted comes
        when it has dialled."""
        template = self._templates[record.template] = TemplateMember(
            record, orphaned=True, sessions_limit=most_sessions + SESSIONS_ENDING)
        self._begin(template, None)

    def start_template(self, id: str, plan: Plan) -> None:
        template = self._templates[id] = TemplateMember(new_record(id, plan), orphaned=False)
        self._begin(template, plan)

    def _begin(self, template: TemplateMember, plan: Plan | None) -> None:
        task = asyncio.get_running_loop().create_task(self._live(template, plan))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(must_not_fail)

    def stop_template(self, id: str) -> None:
        template = self._templates.get(id)
        if template is None:
            return
        if template.channel is not None:
            template.channel.say("stop", {})
        else:
            self.kill_template(id)

    def kill_template(self, id: str) -> None:
        template = self._templates.get(id)
        if template is None:
            return
        template.kill_wanted = True
        if template.process is not None:
            template.process.kill()

    def _over(self, id: str, why: str) -> None:
        """A limit has been crossed."""
        if id in self._templates:
            self._sinks.note(id, f"the template was killed: {why}")
            self._sinks.event(ev.TemplateFailed(id, f"what the agent does at import was killed: {why}"))
            self.kill_template(id)
        else:
            self.kill(id, why)

    def _workers_of(self, template: TemplateMember) -> set[int] | None:
        """Their pids; None while one has not said hello."""
        workers = [worker for worker in self._workers.values() if worker.template is template]
        pids = {worker.process.pid for worker in workers if worker.process is not None}
        return pids if len(pids) == len(workers) else None

    def fork(self, template_id: str, worker_id: str) -> None:
        template = self._templates.get(template_id)
        if template is None or template.channel is None:
            self._sinks.event(ev.WorkerExited(worker_id, "its template is gone"))
            return
        worker = self._workers[worker_id] = WorkerMember(worker_id, template)
        template.channel.say("fork", {"worker_id": worker_id, "nonce": worker.nonce})

    def stop(self, worker_id: str) -> None:
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        worker.told_to_stop = True
        if worker.channel is not None:
            worker.channel.say("stop", {})
        else:
            self.kill(worker_id, "it was told to leave before it had said hello")

    def abort(self, worker_id: str, why: str) -> None:
        """End it by SIGABRT, on which it leaves its stack; whether it obeys is not our business."""
        if (worker := self._workers.get(worker_id)) is not None and worker.process is not None:
            worker.ending.send(worker.process, signal.SIGABRT, why)

    def kill(self, worker_id: str, why: str) -> None:
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        if worker.process is not None:
            worker.ending.send(worker.process, signal.SIGKILL, why)
        elif worker.kill_wanted or worker.template.channel is None:
            # asked twice, and its template did not do it
            self.kill_template(worker.template.id)
        else:
            # never seen here: only its template knows which process it is
            worker.template.channel.say("kill", {"worker_id": worker_id})
        worker.kill_wanted = worker.kill_wanted or why

    def run(self, worker_id: str, fields: dict[str, Any], payload: bytes) -> None:
        if (worker := self._workers.get(worker_id)) is not None and worker.channel is not None:
            worker.allowance.begin(fields["run_id"], fields["stream"])
            worker.channel.say("run", fields, payload)

    def cancel(self, worker_id: str, run_id: str, reason: str) -> None:
        """Say it on the channel, then ring: a handler that computes does not read its channel."""
        if (worker := self._workers.get(worker_id)) is not None and worker.channel is not None and worker.process:
            worker.channel.say("cancel", {"run_id": run_id, "reason": reason})
            worker.process.send_signal(DOORBELL)

    def acknowledge(self, worker_id: str, run_ids: list[str]) -> None:
        """The run log has the ends of these runs; the worker need not keep them."""
        if (worker := self._workers.get(worker_id)) is not None:
            worker.acknowledge(run_ids)

    def end_session(self, worker_id: str, session_id: str, reason: str) -> None:
        if (worker := self._workers.get(worker_id)) is not None and worker.channel is not None:
            worker.channel.say("session_end", {"session_id": session_id, "reason": reason})

    def pid(self, worker_id: str) -> int | None:
        worker = self._workers.get(worker_id)
        return worker.process.pid if worker is not None and worker.process is not None else None

    async def flush(self, timeout_s: float) -> None:
        """Let templates and workers get what they were told, if their sockets take it within `timeout_s`."""
        loop = asyncio.get_running_loop()
        members: list[TemplateMember | WorkerMember] = [*self._templates.values(), *self._workers.values()]
        flushes = [loop.create_task(one.channel.flush()) for one in members if one.channel is not None]
        if flushes:
            await asyncio.wait(flushes, timeout=timeout_s)

    async def kill_all(self, timeout_s: float) -> None:
        """Kill every template, and with it everything in its sandbox; wait `timeout_s` for them to be gone."""
        for id in list(self._templates):
            self.kill_template(id)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    # What channels tell

    def heard(self, channel: Channel, message: Message) -> None:
        if channel.owner or message.type == "hello":
            self._heard[message.type](channel, message)

    def violated(self, channel: Channel, detail: str) -> None:
        if channel.owner in self._workers:
            self._sinks.event(ev.WorkerMisbehaved(channel.owner, detail))
            self.kill(channel.owner, f"protocol violation: {detail}")
        elif channel.owner in self._templates:
            self._sinks.note(channel.owner, f"the template broke the protocol: {detail}")
            self.kill_template(channel.owner)
        else:
            channel.close()

    def closed(self, channel: Channel) -> None:
        worker = self._workers.get(channel.owner)
        if worker is not None and worker.channel is channel:
            worker.eof = True
            if not worker.dead and not worker.told_to_stop:
                asyncio.get_running_loop().call_later(DYING_S, self._not_dying, worker)
            self._conclude(worker)
            return
        template = self._templates.get(channel.owner)
        if template is not None and template.channel is channel:
            template.channel = None
            self.limits.end(template.id)
            self.kill_template(template.id)
        if channel.process is not None:
            channel.process.close()

    def _heard_hello(self, channel: Channel, message: Message) -> None:
        id, nonce = message.fields["id"], message.fields["nonce"]
        known: TemplateMember | WorkerMember | None
        known = self._workers.get(id) if message.fields["role"] == "worker" else self._templates.get(id)
        if known is None or known.channel is not None or not known.awaited(channel.home, nonce):
            channel.close()
            return
        known.channel = channel
        channel.owner = id
        channel.met()
        if message.fields["protocol"] != PROTOCOL_VERSION:
            # what it says cannot be understood, and is not guessed at
            if channel.process is not None:
                channel.process.send_signal(signal.SIGKILL)
            channel.violated(f"it speaks protocol {message.fields['protocol']}, not {PROTOCOL_VERSION}")
            return
        if channel.process is None:
            return
        if isinstance(known, TemplateMember):
            if isinstance(known.process, AdoptedTemplate):
                known.process.meet(channel.process.again())
            else:
                channel.say("setup", {}, orjson.dumps(known.setup))
            self.limits.begin(id, channel.process, known.record.memory_bytes, lambda: self._workers_of(known))
            return
        loop = asyncio.get_running_loop()
        channel.process.watch(loop, lambda: self._died(known))
        self.monitor.register(id, channel.process.pid)
        self.limits.begin(id, channel.process, known.template.record.memory_bytes)
        if known.kill_wanted:
            known.ending.send(channel.process, signal.SIGKILL, known.kill_wanted)

    def _heard_ended(self, channel: Channel, message: Message) -> None:
        worker = self._workers.get(channel.owner)
        if worker is not None:
            worker.has_read(message.fields["run_id"])
            worker.allowance.end(message.fields["run_id"])
        self._sinks.ended(channel.owner, message)

    def _heard_output(self, channel: Channel, message: Message) -> None:
        if (worker := self._workers.get(channel.owner)) is not None:
            worker.allowance.piece(message.fields["run_id"])
            self._sinks.output(worker.id, message)

    def _heard_workers(self, channel: Channel, message: Message) -> None:
        template = self._templates.get(channel.owner)
        if template is None:
            return
        template.allowance.stray(message.type)
        if template.orphaned and not template.orphans:
            template.orphans = orphans_in(message.payload, template.record.nonce)
            for id in template.orphans:
                self._workers.setdefault(id, WorkerMember(id, template, orphaned=True))

    def _heard_holding(self, channel: Channel, message: Message) -> None:
        worker = self._workers.get(channel.owner)
        if worker is not None:
            worker.holds(message)

    def _heard_ready(self, channel: Channel, message: Message) -> None:
        worker, template = self._workers.get(channel.owner), self._templates.get(channel.owner)
        if worker is not None and worker.orphaned:
            self._sinks.adopted(worker.id, *worker.heard_out())
        elif worker is not None:
            self._sinks.event(ev.WorkerReady(worker.id))
        elif template is not None and template.orphaned:
            template.orphaned = False
            channel.say("ring", {})
            self._sinks.event(ev.TemplateAdopted(template.id, tuple(template.orphans)))
        else:
            self._sinks.event(ev.TemplateReady(channel.owner))

    def _heard_failed(self, channel: Channel, message: Message) -> None:
        told = error_text(message.payload)
        if channel.owner in self._workers:
            self._sinks.event(ev.WorkerFailed(channel.owner, told))
        else:
            self._sinks.event(ev.TemplateFailed(channel.owner, told))

    def _heard_exited(self, channel: Channel, message: Message) -> None:
        worker = self._workers.get(message.fields["worker_id"])
        if worker is not None and worker.template.id == channel.owner:
            worker.ending.buried(message.fields)
            worker.dead = True
            if worker.channel is None:
                worker.eof = True
            self._conclude(worker)
        elif channel.owner in self._templates:
            self._templates[channel.owner].allowance.stray(message.type)

    def _heard_log(self, channel: Channel, message: Message) -> None:
        fields = message.fields
        worker, template = self._workers.get(channel.owner), self._templates.get(channel.owner)
        if worker is not None:
            worker.says_line(fields["run_id"], fields["text"])
        elif template is not None:
            # a template speaks for its own workers only
            worker = self._workers.get(fields["worker_id"])
            if worker is None or worker.template is not template:
                template.allowance.line(fields["text"])
                return
            worker.past_python.line(fields["text"])
        else:
            return
        fields["text"] = fields["text"][:LOG_TEXT_LIMIT]
        self._sinks.log(worker.id, message, template is not None)

    # Deaths

    def _died(self, worker: WorkerMember) -> None:
        """The worker's pidfd fired. What it said may still be in the socket, and its status on the way."""
        worker.dead = True
        loop = asyncio.get_running_loop()
        if not worker.eof and worker.channel is not None:
            worker.channel.read_on()
            loop.call_later(LAST_WORDS_S, self._give_up_on_eof, worker)
        loop.call_later(STATUS_S, self._give_up_on_status, worker)
        self._conclude(worker)

    def _not_dying(self, worker: WorkerMember) -> None:
        """EOF without death: it closed its channel, and nobody can reach it any more."""
        if not worker.dead and worker.process is not None:
            worker.ending.send(worker.process, signal.SIGKILL, "it closed its channel")

    def _give_up_on_eof(self, worker: WorkerMember) -> None:
        """Somebody the worker left behind holds its channel open."""
        if not worker.eof and worker.channel is not None:
            worker.channel.close()

    def _give_up_on_status(self, worker: WorkerMember) -> None:
        worker.waited = True
        self._conclude(worker)

    def _conclude(self, worker: WorkerMember) -> None:
        if not (worker.eof and worker.dead and (worker.ending.status is not None or worker.waited)):
            return
        if self._workers.pop(worker.id, None) is None:
            return
        if worker.process is not None:
            worker.process.close()
        id, now = worker.id, asyncio.get_running_loop().time()
        remains = worker.ending.remains(self.limits.end(id), self.monitor.oom_kills, self.monitor.forget(id), now)
        if not worker.told_to_stop:
            log.warning("worker %s of %s ended: %s", worker.id, worker.template.agent, remains.cause)
        unread = frozenset(worker.channel.undelivered) if worker.channel is not None else frozenset[str]()
        self._sinks.died(worker.id, remains)
        self._sinks.event(ev.WorkerExited(worker.id, str(remains.cause), unread))

    # A template's life

    async def _live(self, template: TemplateMember, plan: Plan | None) -> None:
        """The whole life of a template, and the end of its workers with it."""
        cause = await self._lives.live(template, plan)
        self._templates.pop(template.id, None)
        self.limits.end(template.id)
        for worker in [w for w in self._workers.values() if w.template is template]:
            worker.dead = True
            if worker.channel is None:
                worker.eof = worker.waited = True
            self._conclude(worker)
        self._sinks.event(ev.TemplateExited(template.id, cause))
