"""A supervisor in a world of its own: a clock that is told to go, processes that are told to obey, and a witness.

Every step is checked: the core's invariants, the orders against the processes there are, the witness, the laws.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from orpheusd.core.invariants import check
from orpheusd.core.pool import Policy
from orpheusd.core.supervisor import Supervisor
from tests.property.disk import Disk
from tests.property.laws import check_laws
from tests.property.processes import FakeProcesses, FakeTemplate, FakeWorker
from tests.property.records import hold
from tests.property.story import DaemonDied, Step, story_of
from tests.property.witness import Witness

#: Wake-ups at one moment, after which the clock must go on: an owner that is due again at once is a busy loop.
MOST_WAKE_UPS = 50
#: Longer than a quarantine, the longest backoff and the idle time of any agent here, together.
CALM_S = 300.0


class World:
    """Invariant: after each `tell` the core, the processes and the witness agree on what has happened."""

    def __init__(self, policy: Policy | None = None, uniform: Callable[[], float] = lambda: 0.5) -> None:
        self.policy = policy or Policy()
        self.now = 1000.0
        self.uniform = uniform
        self.supervisor = Supervisor("b", self.policy, uniform)
        self.processes = FakeProcesses()
        self.disk = Disk()
        self.mute: set[str] = set()
        self.witness = Witness(self.policy)
        self.story: list[tuple[float, Step]] = []
        self.effects: list[ef.Effect] = []
        self.broken = False
        self._named = 0
        self._deaths = 0
        self._wake_ups = 0

    def tell(self, event: ev.Event) -> list[ef.Effect]:
        """One event, everything it leads to, and every check there is. The effects are kept in `effects` too."""
        again = isinstance(event, ev.TimePassed) and self.story[-1:] == [(self.now, event)]
        self._wake_ups = self._wake_ups + 1 if again else 0
        self.story.append((self.now, event))
        with self._story_told():
            hold(self._wake_ups < MOST_WAKE_UPS, "the core asks to be woken at one moment for ever")
            self.processes.reported(event, self.now)
            self.effects = self.supervisor.handle(event, self.now)
            check(self.supervisor)
            for effect in self.effects:
                self.processes.carry_out(effect, self.now)
            adopting = {agent.id for agent in self.supervisor.agents.values() if agent.adoption is not None}
            self.witness.saw(event, self.effects, self.now, adopting)
            check_laws(self.witness, self.supervisor, self.effects)
        self.disk.saw(event, self.effects, self.now)
        while self.disk.acknowledged:
            self.processes.acknowledge(self.disk.acknowledged.pop())
        return self.effects

    def tell_of(self, step: Step) -> None:
        """One step of a story: an event, or the death of the daemon."""
        if not isinstance(step, DaemonDied):
            self.tell(step)
            return
        self.story.append((self.now, step))
        self._deaths += 1
        self.supervisor = Supervisor(f"b{self._deaths}", self.policy, self.uniform)
        self.processes.daemon_died(step)
        self.witness.daemon_died()

    @contextmanager
    def _story_told(self) -> Iterator[None]:
        """Whatever goes wrong inside is told with its story, once."""
        try:
            yield
        except Exception as error:  # a law or the core itself, it goes on to hypothesis
            if not self.broken:
                error.add_note("The story, for tests/replay:\n" + story_of(self.story))
            self.broken = True
            raise

    # Callers

    def load(
        self, agent: str, settings: Settings | None = None, sessions: tuple[ev.Seen, ...] = (),
    ) -> None:  # fmt: skip
        self.tell(ev.AgentLoaded(agent, 1, settings or Settings(), sessions))

    def serving(self, agent: str, settings: Settings | None = None) -> list[str]:
        """Load an agent and let its processes start. Returns the ids of its workers."""
        self.load(agent, settings)
        self.obey()
        return self.ready_workers(agent)

    def stage(self, agent: str, version: int, settings: Settings | None = None, at_once: bool = False) -> str:
        """Returns the request that the verdict will name."""
        request = self._name("q")
        self.tell(ev.VersionStaged(agent, version, settings or Settings(), request, at_once))
        return request

    def remove(self, agent: str) -> str:
        request = self._name("q")
        self.tell(ev.RemovalRequested(agent, request))
        return request

    def request(
        self, agent: str, session: str | None = None, affinity: str | None = None, overlap: str | None = None,
        warm: bool = False, timeout_s: float | None = None, input_bytes: int = 0,
    ) -> str:  # fmt: skip
        """A caller asks for a run. Returns its id."""
        run = self._name("r")
        self.tell(ev.RunRequested(run, agent, session, affinity, overlap, warm, timeout_s, False, input_bytes))
        return run

    def _name(self, prefix: str) -> str:
        self._named += 1
        return f"{prefix}{self._named}"

    # What became of them

    def answer(self, run: str) -> ef.Resolve | None:
        return self.witness.answers.get(run)

    def worker_of(self, run: str) -> str | None:
        """The worker that has or had the run; None while it waits."""
        if run in self.witness.runs:
            return self.witness.runs[run].worker
        return self.witness.answers[run].worker

    def context_of(self, run: str) -> str | None:
        return self.witness.runs[run].context if run in self.witness.runs else self.witness.answers[run].context

    def ready_workers(self, agent: str) -> list[str]:
        """The workers that may have new runs."""
        workers = [worker for worker in self.witness.workers.values() if worker.agent == agent]
        return [w.id for w in workers if w.state == "ready" and not w.leaving and w.outdated_at is None]

    # Processes

    def end(self, run: str, state: str = "completed", restored: bool = False, saved: bool = False) -> None:
        """The run is over, and its worker says so if anybody hears it."""
        worker = next(worker for worker in self.processes.workers.values() if run in worker.runs)
        end = ev.RunEnded(worker.id, run, state, CODE_OF[state], restored, saved)
        if worker.silent:
            worker.over(end, self.now)
        else:
            self.tell(end)

    def ready(self, id: str) -> None:
        """A template or a worker has started."""
        self.tell(ev.TemplateReady(id) if id in self.processes.templates else ev.WorkerReady(id))

    def exit(self, id: str, undelivered: Iterable[str] = ()) -> None:
        """A process is dead, and its death is told. A template's workers die with it, and wait to be told."""
        if id in self.processes.templates:
            self.tell(ev.TemplateExited(id, "signal 9"))
        elif not self.processes.known(self.processes.workers[id]):
            self.die(id)
        else:
            self.tell(ev.WorkerExited(id, "signal 9", frozenset(undelivered)))

    def die(self, id: str) -> None:
        """A process dies, and nobody has noticed yet."""
        if id in self.processes.templates:
            self.processes.template_dies(self.processes.templates[id])
        else:
            self.processes.workers[id].state = "dead"

    def obey(self) -> None:
        """Every process does what it was asked, and what it would do by itself, until there is nothing left to do."""
        while (step := self._next_step()) is not None:
            step()

    # The daemon

    def daemon_dies(self, dead: Iterable[str], unread: Iterable[str], forgotten: int, behind: int) -> None:
        """The daemon dies, and the next one starts: it knows what is on the disk, which is some writes behind."""
        self.disk.fall(forgotten, behind)
        self.tell_of(DaemonDied(tuple(dead), tuple(unread)))
        for template in list(self.processes.templates.values()):
            if template.agent not in self.disk.current or (template.agent, template.version) not in self.disk.settings:
                self.processes.bury(template)
        for agent in list(self.disk.current):
            orphans = tuple(ev.Orphan(t.id, t.version, self.disk.settings[agent, t.version])
                            for t in self.processes.templates.values() if t.agent == agent)
            self.tell(self.disk.loaded(agent, orphans, self.now))

    def dial(self, process: FakeTemplate | FakeWorker) -> None:
        """A process that outlived its daemon reaches the next one, and says what it has."""
        if isinstance(process, FakeTemplate):
            own = [w for w in self.processes.workers.values() if w.template == process.id and w.state != "dead"]
            self.tell(ev.TemplateAdopted(process.id, tuple(worker.id for worker in own)))
            return
        held = {run: kept for run, kept in process.held.items() if run not in self.disk.ended}
        runs = tuple(ev.Unfinished(run, kept.session, kept.context, process.id, max(0.0, kept.deadline - self.now),
                                   kept.end is not None) for run, kept in held.items())
        seen = tuple(ev.Seen(id, memory.turns, self.now - memory.used_at, process.id, memory.saved)
                     for id, memory in process.sessions.items())
        self.disk.found(process.agent, process.id, runs)
        self.tell(ev.WorkerAdopted(process.id, seen, runs))

    def pay(self, worker: FakeWorker) -> None:
        """It tells again of a run that was over before it dialled."""
        end = worker.held[worker.owed[0]].end
        assert end is not None
        self.tell(end)

    def _next_step(self) -> Callable[[], None] | None:
        for worker in [w for w in self.processes.workers.values() if self.processes.known(w)]:
            if worker.state == "dead" or worker.asked == "abort" or (worker.asked and not worker.runs):
                return lambda: self.exit(worker.id)
            for run, reason in worker.runs.items():
                if reason:
                    return lambda: self.end(run, reason)
            if worker.owed:
                return lambda: self.pay(worker)
        for process in [p for p in self.processes.all if isinstance(p, FakeTemplate) or self.processes.known(p)]:
            if process.state == "dead" or (process.asked and isinstance(process, FakeTemplate)):
                return lambda: self.exit(process.id)
            if process.state == "starting":
                return lambda: self.ready(process.id)
            if process.silent and process.id not in self.mute:
                return lambda: self.dial(process)
        return None

    # Time

    def wake(self) -> None:
        """The timer fires, exactly when it should."""
        deadline = self.supervisor.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.tell(ev.TimePassed())

    def wait(self, seconds: float, late: bool = False) -> None:
        """Time goes by, with a wake-up at each deadline, or `late`: one at the end."""
        end = self.now + seconds
        while not late and (deadline := self.supervisor.next_deadline()) is not None and deadline <= end:
            self.wake()
        self.now = end
        if late:
            self.tell(ev.TimePassed())

    def calm(self, seconds: float = CALM_S, work: bool = True) -> None:
        """Time goes by while every process obeys and, with `work`, every run completes."""
        end = self.now + seconds
        while True:
            self.obey()
            run = next((run for w in self.processes.workers.values() for run in w.runs), None) if work else None
            deadline = self.supervisor.next_deadline()
            if run is not None:
                self.end(run)
            elif deadline is not None and deadline <= end:
                self.wake()
            else:
                break
        self.now = end

    # The end of a story

    def close(self) -> None:
        """Let everything calm down, see that everything has been answered and still works, and shut down."""
        if self.broken:
            return
        with self._story_told():
            self._close()

    def _close(self) -> None:
        if not self.witness.stopping:
            self.calm()
            self._check_calm()
            for agent in list(self.witness.agents):
                run = self.request(agent, "probe")
                self.calm(CALM_S / 2)
                answer = self.answer(run)
                hold(answer is not None and answer.state == "completed", f"{agent} does not work any more: {answer}")
            self.calm()
            self._check_calm()
            self.tell(ev.ShutdownRequested())
        self.calm(2 * self.policy.drain_s + 10 * self.policy.grace_s)
        hold(self.witness.stopped, "Stopped is not said")
        hold(self.processes.empty, "processes are left")
        hold(not self.witness.runs, f"{sorted(self.witness.runs)} are not answered")
        for id in self.processes.gone:
            self.tell(ev.WorkerExited(id, "again"))

    def _check_calm(self) -> None:
        """With nothing to do, everybody has an answer, and each agent has just the processes it wants."""
        hold(not self.witness.runs, f"{sorted(self.witness.runs)} are not answered")
        waiting = [request for request, verdict in self.witness.verdicts.items() if verdict is None]
        hold(not waiting, f"{waiting} have no verdict")
        for agent in self.witness.agents.values():
            hold(agent.removal is None, f"{agent.id} is not removed")
            workers = self.ready_workers(agent.id)
            hold(len(workers) == agent.settings.min_workers, f"{agent.id} has {workers}")
            templates = [t for t in self.witness.templates.values() if t.agent == agent.id]
            hold([t.id for t in templates] == [agent.current], f"{agent.id} has templates {templates}")


CODE_OF = {"completed": "", "failed": "handler-failed", "timed-out": "timed-out", "cancelled": "cancelled"}

