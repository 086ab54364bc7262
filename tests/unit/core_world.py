"""One supervisor, driven by hand: events go in, effects are kept, and the invariants are checked after every event."""

from math import inf
from typing import TypeVar

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import Agent, Settings
from orpheusd.core.invariants import check
from orpheusd.core.pool import Policy
from orpheusd.core.supervisor import Supervisor

E = TypeVar("E")

#: With this each restart delay is three quarters of its most.
UNIFORM = 0.5
#: Wake-ups at one moment, after which the clock must go on.
MOST_AT_ONCE = 50
CODES = {"completed": "", "failed": "handler-failed", "timed-out": "timed-out", "cancelled": "cancelled"}


class CoreWorld:
    """Invariant: `effects` is everything the supervisor ever ordered, in order, and every check has held so far.

    Processes do nothing by themselves: they become ready in `start_all` or `tell`, and die in `die`.
    """

    def __init__(self, policy: Policy | None = None, uniform: float = UNIFORM) -> None:
        self.policy = policy or Policy()
        self.free_mb = inf
        self.supervisor = Supervisor("b", self.policy, lambda: uniform, lambda: self.free_mb)
        self.now = 1000.0
        self.effects: list[ef.Effect] = []
        self._names = 0

    def tell(self, event: ev.Event) -> list[ef.Effect]:
        effects = self.supervisor.handle(event, self.now)
        check(self.supervisor)
        self.effects += effects
        return effects

    # Agents

    def deploy(
        self, agent: str = "a", workers: int = 1, sessions: tuple[ev.Seen, ...] = (),
        **settings: float | str,
    ) -> list[str]:  # fmt: skip
        """An agent with that many workers, all ready. Returns their ids."""
        settings.setdefault("min_workers", workers)
        self.tell(ev.AgentLoaded(agent, 1, Settings(**settings), sessions))  # type: ignore[arg-type]
        self.start_all()
        assert len(self.ready(agent)) == workers
        return self.ready(agent)

    def stage(self, version: int, agent: str = "a", at_once: bool = False, **settings: float | str) -> str:
        """Returns the id of the template on trial."""
        request = self.name("q")
        wanted = Settings(**settings)  # type: ignore[arg-type]
        effects = self.tell(ev.VersionStaged(agent, version, wanted, request, at_once))
        return only(effects, ef.StartTemplate).template

    def redeploy(self, version: int = 2, agent: str = "a", **settings: float | str) -> str:
        """The version comes to serve. Returns its first worker."""
        self.stage(version, agent, **settings)
        self.start_all()
        current = self.agent(agent).current
        assert current is not None and current.version == version
        return next(id for id, worker in self.agent(agent).workers.items() if worker.template is current)

    def agent(self, agent: str = "a") -> Agent:
        return self.supervisor.agents[agent]

    # Runs

    def request(
        self, session: str | None = None, agent: str = "a", affinity: str | None = None, overlap: str | None = None,
        warm: bool = False, timeout_s: float | None = None, input_bytes: int = 0,
    ) -> str:  # fmt: skip
        """A caller asks for a run. Returns its id."""
        run = self.name("r")
        self.tell(ev.RunRequested(run, agent, session, affinity, overlap, warm, timeout_s, False, input_bytes))
        return run

    def end(self, run: str, state: str = "completed", restored: bool = False, saved: bool = False) -> None:
        """The run's worker says that it is over."""
        self.tell(ev.RunEnded(self.worker_of(run) or "", run, state, CODES[state], restored, saved))

    def run(self, session: str | None = None, saved: bool = False) -> str:
        """A run that starts at once and completes. Returns its worker."""
        run = self.request(session)
        worker = self.worker_of(run)
        assert worker is not None, "it had to wait"
        self.end(run, saved=saved)
        return worker

    def dispatches(self, run: str) -> list[ef.Dispatch]:
        return [effect for effect in all_of(self.effects, ef.Dispatch) if effect.run == run]

    def worker_of(self, run: str) -> str | None:
        """The worker that has or had it; None while it waits."""
        known = self.supervisor.runs.get(run)
        if known is not None:
            return known.worker.id if known.worker is not None else None
        return self.answer(run).worker

    def context_of(self, run: str) -> str | None:
        """The context that the run was dispatched with last."""
        return self.dispatches(run)[-1].context

    def waits(self, run: str) -> bool:
        return run in self.supervisor.runs and self.worker_of(run) is None

    def answer(self, run: str) -> ef.Resolve:
        """The one answer that the caller got."""
        answers = [effect for effect in all_of(self.effects, ef.Resolve) if effect.run == run]
        assert len(answers) == 1, f"{run} was answered {len(answers)} times"
        return answers[0]

    def outcome(self, run: str) -> tuple[str, str]:
        """State and code of the answer."""
        return self.answer(run).state, self.answer(run).code

    # Processes

    def ready(self, agent: str = "a") -> list[str]:
        """The agent's workers that may have new runs."""
        return [id for id, worker in self.agent(agent).workers.items() if worker.state.value == "ready"]

    def state_of(self, worker: str) -> str:
        return str(self.supervisor.pool.workers[worker].state.value)

    def start_all(self) -> None:
        """Whatever was started becomes ready, until nothing is starting."""
        pool = self.supervisor.pool
        while True:
            templates = [t.id for t in pool.templates.values() if t.state.value == "starting"]
            workers = [w.id for w in pool.workers.values() if w.state.value == "starting"]
            if not templates and not workers:
                return
            for id in templates:
                self.tell(ev.TemplateReady(id))
            for id in workers:
                self.tell(ev.WorkerReady(id))

    def die(self, worker: str, *undelivered: str) -> list[ef.Effect]:
        """The kernel has proved the worker dead. `undelivered` are runs it has never read."""
        return self.tell(ev.WorkerExited(worker, "signal 9", frozenset(undelivered)))

    def fall(self, worker: str, times: int) -> None:
        """`worker` and each that takes its place die, `times` deaths in all."""
        for number in range(times):
            self.die(worker)
            if number < times - 1:
                worker = self.next_fork()
                self.tell(ev.WorkerReady(worker))

    def next_fork(self) -> str:
        """Wait until one more worker is forked."""
        forked = len(all_of(self.effects, ef.ForkWorker))
        while len(all_of(self.effects, ef.ForkWorker)) == forked:
            deadline = self.supervisor.next_deadline()
            assert deadline is not None, "nothing will be forked any more"
            self.wait(max(0.0, deadline - self.now))
        return all_of(self.effects, ef.ForkWorker)[-1].worker

    def occupy(self, worker: str) -> str:
        """Give a worker a run without a session, leaving the other idle ones idle. Returns the run."""
        others: list[str] = []
        while True:
            run = self.request()
            assert self.worker_of(run) is not None, f"{worker} cannot take a run"
            if self.worker_of(run) == worker:
                break
            others.append(run)
        for other in others:
            self.end(other)
        return run

    # Time

    def wait(self, seconds: float) -> None:
        """Time goes by; the supervisor is woken at each of its deadlines."""
        end = self.now + seconds
        at_once = 0
        while (deadline := self.supervisor.next_deadline()) is not None and deadline <= end:
            at_once = at_once + 1 if deadline <= self.now else 0
            assert at_once < MOST_AT_ONCE, "the supervisor asks to be woken at one moment for ever"
            self.now = max(self.now, deadline)
            self.tell(ev.TimePassed())
        self.now = end

    def name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names}"


def all_of(effects: list[ef.Effect], kind: type[E]) -> list[E]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def only(effects: list[ef.Effect], kind: type[E]) -> E:
    """The one effect of that kind."""
    found = all_of(effects, kind)
    assert len(found) == 1, f"{len(found)} of {kind.__name__} in {effects}"
    return found[0]
