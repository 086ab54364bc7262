"""A process layer without processes: it takes the core's orders and remembers what the core would find out.

A process that dies stays here, dead and unreported, until its exit is told: so events about it may still come,
as they do from a real one. It does nothing by itself: the world decides who obeys, when, and who does not.

What is in a worker's memory is known here and nowhere else, so it is seen here whether a run is told the truth.
"""

from dataclasses import dataclass, field, replace

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from tests.property.records import hold
from tests.property.story import DaemonDied


@dataclass
class FakeTemplate:
    """`silent`: it outlived the daemon that started it, and the present one has not heard it."""

    id: str
    agent: str
    version: int
    state: str = "starting"  # or ready, dead
    asked: str = ""  # or stop, kill
    silent: bool = False


@dataclass(frozen=True)
class Memory:
    """A session that lives in a worker: the turns it has finished, and when."""

    turns: int
    used_at: float
    saved: bool = False


@dataclass(frozen=True)
class Held:
    """A run whose end nobody has acknowledged. `before` is what was in memory of its session, `end` what was said when
    it was over; `fresh`: it is of the present daemon."""

    session: str | None
    context: str | None
    turn: int
    deadline: float
    before: Memory | None
    end: ev.RunEnded | None = None
    fresh: bool = True


@dataclass
class FakeWorker:
    """`runs` maps each run that goes on to the reason for which it was told to stop, or ""; `owed` are those whose
    ends it is to tell again."""

    id: str
    agent: str
    template: str
    state: str = "starting"  # or ready, dead
    asked: str = ""  # or stop, abort, kill
    silent: bool = False
    runs: dict[str, str] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    owed: list[str] = field(default_factory=list)
    sessions: dict[str, Memory] = field(default_factory=dict)

    @property
    def fresh(self) -> list[str]:
        """The runs that go on and that it was handed by the present daemon."""
        return [run for run in self.runs if self.held[run].fresh]

    def over(self, end: ev.RunEnded, now: float) -> None:
        held = self.held[end.run]
        del self.runs[end.run]
        self.held[end.run] = replace(held, end=end)
        memory = self.sessions.get(held.session or "")
        if memory is not None:
            self.sessions[held.session or ""] = Memory(memory.turns + 1, now, memory.saved or end.saved)


class FakeProcesses:
    """Invariant: `templates` and `workers` are those that have been ordered and not reported as exited;
    `gone` are workers that have. `homes` is where sessions live by what the daemon found on disk."""

    def __init__(self) -> None:
        self.templates: dict[str, FakeTemplate] = {}
        self.workers: dict[str, FakeWorker] = {}
        self.gone: list[str] = []
        self.homes: dict[tuple[str, str], str | None] = {}

    @property
    def all(self) -> list[FakeTemplate | FakeWorker]:
        return [*self.templates.values(), *self.workers.values()]

    @property
    def empty(self) -> bool:
        return not self.templates and not self.workers

    def known(self, worker: FakeWorker) -> bool:
        """Whether the daemon knows that there is such a worker."""
        return not self.templates[worker.template].silent if worker.template in self.templates else True

    def carry_out(self, effect: ef.Effect, now: float) -> None:
        if isinstance(effect, ef.StartTemplate):
            self.templates[effect.template] = FakeTemplate(effect.template, effect.agent, effect.version)
        elif isinstance(effect, ef.ForkWorker):
            template = self._template(effect.template, effect)
            state = "dead" if template.state == "dead" else "starting"
            self.workers[effect.worker] = FakeWorker(effect.worker, template.agent, template.id, state)
        elif isinstance(effect, ef.StopTemplate):
            template = self._template(effect.template, effect)
            template.asked = "stop"
            if template.silent:
                self.template_dies(template)
        elif isinstance(effect, ef.KillTemplate):
            self.template_dies(self._template(effect.template, effect))
        elif isinstance(effect, ef.StopWorker):
            self._worker(effect.worker, effect).asked = "stop"
        elif isinstance(effect, ef.AbortWorker):
            worker = self._worker(effect.worker, effect)
            hold(worker.asked != "kill", f"{effect} comes after the kill")
            worker.asked = "abort"
        elif isinstance(effect, ef.KillWorker):
            worker = self._worker(effect.worker, effect)
            worker.asked, worker.state = "kill", "dead"
        elif isinstance(effect, ef.Dispatch):
            self._dispatch(self._worker(effect.worker, effect), effect, now)
        elif isinstance(effect, ef.CancelRun):
            worker = self._worker(effect.worker, effect)
            has = effect.run in worker.runs or effect.run in worker.owed
            hold(has or worker.silent, f"{effect} names a run that {worker.id} does not have")
            if effect.run in worker.runs and not worker.silent:
                worker.runs[effect.run] = effect.reason
        elif isinstance(effect, ef.EndSession) and effect.worker is not None:
            self._worker(effect.worker, effect).sessions.pop(effect.session, None)

    def template_dies(self, template: FakeTemplate) -> None:
        """It is the first process of its sandbox: whatever it forked dies with it."""
        template.state = "dead"
        for worker in self.workers.values():
            if worker.template == template.id:
                worker.state = "dead"

    def acknowledge(self, run: str) -> None:
        """The end of the run is in the log, and its worker hears of that if it hears anything."""
        for worker in self.workers.values():
            if run in worker.held and run not in (*worker.runs, *worker.owed) and not worker.silent:
                del worker.held[run]

    def daemon_died(self, step: DaemonDied) -> None:
        """Everybody is silent now. Who was not ready, or was told to leave, does not wait for another daemon."""
        for template in list(self.templates.values()):
            if template.id in step.dead or template.state == "starting" or template.asked:
                self.template_dies(template)
            template.silent = True
        for worker in self.workers.values():
            if worker.id in step.dead:
                worker.state = "dead"
            elif worker.state == "starting":
                worker.state = "ready"
            worker.silent, worker.owed = True, []
            for run in [run for run in reversed(worker.runs) if run in step.unread]:
                self._never_arrived(worker, run)
            worker.held = {run: replace(held, fresh=False) for run, held in worker.held.items()}
        self.homes = {}

    def bury(self, template: FakeTemplate) -> None:
        """Nobody asks after the template any more: it and its workers are killed without a word."""
        del self.templates[template.id]
        for worker in [worker for worker in self.workers.values() if worker.template == template.id]:
            del self.workers[worker.id]
            self.gone.append(worker.id)

    def reported(self, event: ev.Event, now: float) -> None:
        """The core is being told this; if it is about a process that is here, it is true of it from now on."""
        if isinstance(event, ev.AgentLoaded):
            self.homes |= {(event.agent, seen.id): seen.home for seen in event.sessions}
        elif isinstance(event, ev.TemplateReady | ev.WorkerReady):
            process: FakeTemplate | FakeWorker | None = self.templates.get(event[0]) or self.workers.get(event[0])
            if process is not None and process.state == "starting":
                process.state = "ready"
        elif isinstance(event, ev.TemplateAdopted) and event.template in self.templates:
            self._template_adopted(self.templates[event.template], event)
        elif isinstance(event, ev.WorkerAdopted) and event.worker in self.workers:
            self._worker_adopted(self.workers[event.worker], event, now)
        elif isinstance(event, ev.RunEnded) and event.worker in self.workers:
            worker = self.workers[event.worker]
            if event.run in worker.runs:
                worker.over(event, now)
            elif event.run in worker.owed:
                worker.owed.remove(event.run)
        elif isinstance(event, ev.WorkerExited) and event.worker in self.workers:
            del self.workers[event.worker]
            self.gone.append(event.worker)
        elif isinstance(event, ev.TemplateExited) and event.template in self.templates:
            template = self.templates[event.template]
            self.template_dies(template)
            if template.silent:
                self.bury(template)
            else:
                del self.templates[template.id]

    def _dispatch(self, worker: FakeWorker, effect: ef.Dispatch, now: float) -> None:
        hold(all(effect.run not in w.held for w in self.workers.values()), f"{effect.run} is handed over twice")
        hold(not worker.silent, f"{effect} to one that nobody has heard")
        before = worker.sessions.get(effect.session or "")
        worker.runs[effect.run] = ""
        worker.held[effect.run] = Held(effect.session, effect.context, effect.turn, now + effect.timeout_s, before)
        if effect.session is None:
            return
        homes = [w for w in self.workers.values()
                 if w.state != "dead" and w.agent == worker.agent and effect.session in w.sessions]
        for home in homes:
            truth = "warm" if home is worker else "spilled"
            named = self.homes.get((home.agent, effect.session)) == home.id or \
                any(home.held[run].session == effect.session for run in home.runs)
            if home.silent and not named:
                del home.sessions[effect.session]  # it had its time to say so, and the disk does not know it
            else:
                hold(effect.context == truth, f"{effect}, and the session lives on {home.id}: it is {truth}")
        if effect.context != "spilled":
            turns = max(effect.turn - 1, before.turns if before is not None else 0)
            worker.sessions[effect.session] = Memory(turns, now, before is not None and before.saved)

    def _never_arrived(self, worker: FakeWorker, run: str) -> None:
        del worker.runs[run]
        held = worker.held.pop(run)
        if held.session is not None and held.context != "spilled":
            worker.sessions.pop(held.session, None)
            if held.before is not None:
                worker.sessions[held.session] = held.before

    def _template_adopted(self, template: FakeTemplate, event: ev.TemplateAdopted) -> None:
        template.silent = False
        for worker in [w for w in self.workers.values() if w.template == template.id and w.id not in event.workers]:
            del self.workers[worker.id]
            self.gone.append(worker.id)

    def _worker_adopted(self, worker: FakeWorker, event: ev.WorkerAdopted, now: float) -> None:
        """What it says is what it has: in a story that is told again nobody else knows what became of its runs."""
        worker.silent = False
        said = {run.run: run for run in event.runs}
        for run in list(worker.runs):
            if run not in said:
                del worker.runs[run], worker.held[run]
            elif said[run].over:
                worker.over(ev.RunEnded(worker.id, run, "completed", ""), now)
        worker.held = {run: held for run, held in worker.held.items() if run in said}
        worker.owed = [run.run for run in event.runs if run.over]

    def _template(self, id: str, effect: ef.Effect) -> FakeTemplate:
        hold(id in self.templates, f"{effect} is about a template that is gone")
        return self.templates[id]

    def _worker(self, id: str, effect: ef.Effect) -> FakeWorker:
        hold(id in self.workers, f"{effect} is about a worker that is gone")
        return self.workers[id]
