"""The hypothesis machine: callers, operators, processes and time do as they please, and the world checks each step."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from orpheusd.core.pool import Policy
from tests.property.disk import LAG
from tests.property.processes import FakeTemplate, FakeWorker
from tests.property.world import CODE_OF, World

T = TypeVar("T")

AGENTS = ("a", "b", "c")
SESSIONS = (None, "s1", "s2", "s3", "s4")
#: Small limits and short times, so that a story of a few dozen steps meets them.
SHORT = Settings(timeout_s=10.0, queue_timeout_s=15.0, idle_timeout_s=20.0, session_ttl_s=40.0, drain_s=25.0)
LONG_RUNS = SHORT._replace(timeout_s=60.0, idle_timeout_s=5.0, drain_s=8.0)
VARIANTS = (
    SHORT._replace(max_workers=2),
    SHORT._replace(min_workers=2, max_workers=3, recycle_runs=3, recycle_mb=100),
    SHORT._replace(min_workers=0, max_workers=1, affinity="strict", overlap="queue", session_max=2),
    SHORT._replace(concurrency=3, max_workers=2, queue_size=4, session_queue_size=2),
    SHORT._replace(min_workers=2, max_workers=3, concurrency=2, overlap="interrupt", session_max=3, patience_s=1.0),
    SHORT._replace(max_workers=2, concurrency=2, queue_size=3, session_max=2, patience_s=0.0,
                   drain_s=0.0),
    LONG_RUNS._replace(max_workers=6, overlap="reject", session_ttl_s=15.0),
    LONG_RUNS._replace(min_workers=2, max_workers=4, concurrency=2, scale_up_threshold=2.0, queue_size=5),
)
#: How one run of a session may differ from the next: affinity, overlap, whether it must be warm.
KINDS: tuple[tuple[str | None, str | None, bool], ...] = (
    (None, None, False), ("soft", "allow", False), ("strict", "allow", False), ("soft", "queue", False),
    ("strict", "queue", False), (None, "interrupt", False), (None, "reject", False), ("soft", "allow", True),
)

#: Of one agent alone a large one may wait, and not two.
INPUTS = st.sampled_from((0, 0, 0, 40, 90))
WAITING_BYTES = 200

NUMBERS = st.integers(0, 30)
agents = st.sampled_from(AGENTS)
variants = st.sampled_from(VARIANTS)


def pick(items: Sequence[T], number: int) -> T:
    return items[number % len(items)]


class Life(RuleBasedStateMachine):
    """One story. What a rule does when nobody is there to do it to: nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Policy(waiting_bytes=WAITING_BYTES))
        self.versions = 1

    @property
    def templates(self) -> list[FakeTemplate]:
        return list(self.world.processes.templates.values())

    @property
    def workers(self) -> list[FakeWorker]:
        return list(self.world.processes.workers.values())

    @property
    def started(self) -> list[str]:
        return [run for worker in self.workers for run in worker.runs]

    @property
    def silent(self) -> list[FakeTemplate | FakeWorker]:
        """Those who have outlived a daemon and may dial now."""
        waiting = [p for p in self.world.processes.all if p.silent and p.state == "ready"]
        return [p for p in waiting if isinstance(p, FakeTemplate) or self.world.processes.known(p)]

    @initialize(first=variants, second=variants, remembered=st.integers(0, 4))
    def begin(self, first: Settings, second: Settings, remembered: int) -> None:
        sessions = tuple(ev.Seen(f"s{number}", number, 30.0 - 5.0 * number) for number in range(1, remembered + 1))
        self.world.serving("a", first)
        self.world.load("b", second, sessions)

    # Callers

    @rule(agent=agents, session=st.sampled_from(SESSIONS), affinity=st.sampled_from((None, "soft", "strict")),
          overlap=st.sampled_from((None, "allow", "queue", "reject", "interrupt")), warm=st.booleans(),
          timeout_s=st.sampled_from((None, None, 1.0, 60.0)), input_bytes=INPUTS)  # fmt: skip
    def request(
        self, agent: str, session: str | None, affinity: str | None, overlap: str | None, warm: bool,
        timeout_s: float | None, input_bytes: int,
    ) -> None:  # fmt: skip
        self.world.request(agent, session, affinity, overlap, warm, timeout_s, input_bytes)

    @rule(session=st.sampled_from(SESSIONS), overlap=st.sampled_from((None, "queue")), times=st.integers(2, 6),
          input_bytes=INPUTS)  # fmt: skip
    def flood(self, session: str | None, overlap: str | None, times: int, input_bytes: int) -> None:
        for _ in range(times):
            self.world.request("a", session, overlap=overlap, input_bytes=input_bytes)

    @rule(agent=agents, session=st.sampled_from(SESSIONS[1:3]),
          kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=5))  # fmt: skip
    def mixed(self, agent: str, session: str, kinds: list[tuple[str | None, str | None, bool]]) -> None:
        """Runs of one session that want different things."""
        for affinity, overlap, warm in kinds:
            self.world.request(agent, session, affinity, overlap, warm)

    @rule(agent=agents, sessions=st.permutations(SESSIONS))
    def one_of_each(self, agent: str, sessions: list[str | None]) -> None:
        for session in sessions:
            self.world.request(agent, session)

    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        if runs := list(self.world.witness.runs):
            self.world.tell(ev.CancelRequested(pick(runs, number)))

    @rule(agent=agents, session=st.sampled_from(SESSIONS[1:]))
    def end_session(self, agent: str, session: str) -> None:
        self.world.tell(ev.SessionEndRequested(agent, session))

    # Operators

    @rule(agent=agents, settings=variants, at_once=st.sampled_from((False, False, True)), obey=st.booleans())
    def stage(self, agent: str, settings: Settings, at_once: bool, obey: bool) -> None:
        self.versions += 1
        self.world.stage(agent, self.versions, settings, at_once)
        if obey:
            self.world.obey()

    @rule(agent=agents, settings=variants, again=st.booleans(), sessions=st.permutations(SESSIONS))
    def redeploy(self, agent: str, settings: Settings, again: bool, sessions: list[str | None]) -> None:
        """Sessions have homes, and ask again when a newer version, or the same one, serves."""
        for session in sessions:
            self.world.request(agent, session)
        self.work(0, len(sessions))
        if not again:
            self.versions += 1
        self.world.stage(agent, self.versions, settings)
        self.world.obey()
        for session in sessions:
            self.world.request(agent, session)

    @rule(agent=agents, settings=variants, times=st.integers(2, 6), asked=st.booleans(), worked=st.booleans())
    def breaks_at_once(self, agent: str, settings: Settings, times: int, asked: bool, worked: bool) -> None:
        """A new version loses its workers as they come, at its first runs or after some."""
        self.stage(agent, settings, at_once=False, obey=True)
        if worked:
            self.world.request(agent)
            self.work(0, 8)
        for _ in range(times):
            if asked:
                self.world.request(agent)
            record = self.world.witness.agents.get(agent)
            young = [w for w in self.workers if record is not None and w.template == record.current]
            if young:
                self.world.exit(young[0].id)
            self.world.wait(1.0)
            self.process_says(0, "ready")

    @rule(agent=agents, busy=st.booleans(), number=st.integers(0, 3))
    def remove(self, agent: str, busy: bool, number: int) -> None:
        if number == 0:
            if busy:
                self.world.request(agent, timeout_s=60.0)
            self.world.remove(agent)

    @rule(number=st.integers(0, 9))
    def shutdown(self, number: int) -> None:
        if number == 0:
            self.world.tell(ev.ShutdownRequested())

    # Processes

    @rule()
    def obey(self) -> None:
        self.world.obey()

    @rule(number=NUMBERS, state=st.sampled_from(tuple(CODE_OF)), restored=st.booleans(), saved=st.booleans())
    def end_run(self, number: int, state: str, restored: bool, saved: bool) -> None:
        if self.started:
            self.world.end(pick(self.started, number), state, restored, saved)

    @rule(number=NUMBERS, times=st.integers(2, 8))
    def work(self, number: int, times: int) -> None:
        """One worker after another completes what it has."""
        for _ in range(times):
            if self.started:
                self.world.end(pick(self.started, number))

    @rule(number=NUMBERS, how=st.sampled_from(("ready", "ready", "failed", "exit", "die", "misbehave")))
    def process_says(self, number: int, how: str) -> None:
        starting = [p for p in self.world.processes.all if p.state == "starting"]
        if starting:
            process = pick(starting, number)
            self._says(process, how)

    @rule(number=NUMBERS, how=st.sampled_from(("exit", "die", "misbehave", "failed")))
    def worker_falls(self, number: int, how: str) -> None:
        if self.workers:
            self._says(pick(self.workers, number), how)

    @rule(number=NUMBERS)
    def worker_grows(self, number: int) -> None:
        if self.workers:
            self.world.tell(ev.WorkerGrew(pick(self.workers, number).id, 200.0))

    @rule(number=NUMBERS, seconds=st.sampled_from((0.1, 4.0, 20.0)), how=st.sampled_from(("misbehave", "disobey")))
    def worker_dies_hard(self, number: int, seconds: float, how: str) -> None:
        """A worker is being killed, and the kernel takes its time."""
        busy = [run for run in self.world.witness.runs.values() if run.state == "started"]
        if how == "disobey" and busy:
            run = pick(busy, number)
            self.world.tell(ev.CancelRequested(run.id))
            self.world.wait(self.world.policy.grace_s + seconds)
        elif how == "misbehave" and self.workers:
            self._says(pick(self.workers, number), how)
            self.world.wait(seconds)

    @rule(number=NUMBERS, overlap=st.sampled_from(("allow", "queue", "interrupt")))
    def home_of_a_spilled_run_falls(self, number: int, overlap: str) -> None:
        """A session is left with a run in progress and no home; its caller asks again when there is another worker."""
        spilled = [run for run in self.world.witness.runs.values() if run.context == "spilled"]
        if spilled:
            run = pick(spilled, number)
            home = self.world.witness.home_of(self.world.witness.agents[run.agent], run)
            if home is not None:
                self.world.exit(home.id)
                self.world.wait(0.2)
                self.world.obey()
                self.world.request(run.agent, run.session, overlap=overlap)

    @rule(number=NUMBERS, how=st.sampled_from(("exit", "die")))
    def template_falls(self, number: int, how: str) -> None:
        if self.templates:
            self._says(pick(self.templates, number), how)

    @rule(number=NUMBERS)
    def death_is_noticed(self, number: int) -> None:
        if dead := [p.id for p in self.world.processes.all if p.state == "dead"]:
            self.world.exit(pick(dead, number))

    @rule(number=NUMBERS, unread=st.integers(1, 3))
    def dies_before_it_reads(self, number: int, unread: int) -> None:
        """A worker is gone before it has read the last runs that it was handed."""
        if busy := [worker for worker in self.workers if worker.fresh]:
            worker = pick(busy, number)
            self.world.exit(worker.id, worker.fresh[-unread:])

    def _says(self, process: FakeTemplate | FakeWorker, how: str) -> None:
        template = isinstance(process, FakeTemplate)
        if how == "exit":
            self.world.exit(process.id)
        elif how == "die" or process.silent:
            self.world.die(process.id)
        elif how == "ready":
            self.world.ready(process.id)
        elif template:
            self.world.tell(ev.TemplateFailed(process.id, "no such module"))
        elif how == "failed":
            self.world.tell(ev.WorkerFailed(process.id, "no such module"))
        else:
            self.world.tell(ev.WorkerMisbehaved(process.id, "nonsense"))

    # The daemon

    @rule(dead=st.lists(NUMBERS, max_size=2), mute=st.lists(NUMBERS, max_size=2), unread=st.integers(0, 2),
          forgotten=st.integers(0, LAG), behind=st.integers(0, LAG), dial=st.booleans())  # fmt: skip
    def daemon_dies(
        self, dead: list[int], mute: list[int], unread: int, forgotten: int, behind: int, dial: bool
    ) -> None:  # fmt: skip
        """Those it leaves live on; some die meanwhile, some do not dial, and some runs never left the daemon."""
        processes = self.world.processes.all
        fresh = [run for worker in self.workers for run in worker.fresh if not worker.runs[run]]
        self.world.mute = {pick(processes, number).id for number in mute if processes}
        self.world.daemon_dies({pick(processes, number).id for number in dead if processes}, fresh[-unread:] if unread
                               else (), forgotten, behind)
        if dial:
            self.world.obey()

    @rule(agent=agents, sessions=st.permutations(SESSIONS), ended=st.integers(0, 4),
          dials=st.lists(NUMBERS, max_size=6), forgotten=st.integers(0, LAG), behind=st.integers(0, LAG),
          mute=st.booleans())  # fmt: skip
    def daemon_dies_under_load(
        self, agent: str, sessions: list[str | None], ended: int, dials: list[int], forgotten: int, behind: int,
        mute: bool,
    ) -> None:  # fmt: skip
        """Sessions have homes and runs; all ask again while their homes are heard one after another."""
        for session in [*sessions, *sessions]:
            self.world.request(agent, session)
        self.work(0, ended)
        self.daemon_dies([], [ended] if mute else [], 0, forgotten, behind, dial=False)
        for session in sessions:
            self.world.request(agent, session)
            if dials:
                self.dial(dials.pop())

    @rule(number=NUMBERS)
    def dial(self, number: int) -> None:
        if self.silent:
            self.world.dial(pick(self.silent, number))

    @rule()
    def all_speak(self) -> None:
        self.world.mute.clear()

    # Time

    @rule()
    def wake(self) -> None:
        self.world.wake()

    @rule(seconds=st.sampled_from((0.001, 0.05, 0.1, 1.0, 5.0, 12.0, 30.0, 90.0)), late=st.booleans())
    def wait(self, seconds: float, late: bool) -> None:
        self.world.wait(seconds, late)

    @rule(seconds=st.sampled_from((0.01, 0.1, 3.0)))
    def time_slips(self, seconds: float) -> None:
        """The next event comes before the timer does."""
        self.world.now += seconds

    @rule(seconds=st.sampled_from((5.0, 25.0, 70.0)))
    def calm(self, seconds: float) -> None:
        self.world.calm(seconds)

    # Letters from the dead, and from those who never were

    @rule(number=NUMBERS, other=NUMBERS)
    def letter_about_a_run(self, number: int, other: int) -> None:
        """Some worker claims the end of some run: another's, one that is over, one that never was."""
        workers = [*self.world.processes.gone, *(w.id for w in self.workers), "w-x-1"]
        runs = [*self.world.witness.answers, *self.started, "r-x"]
        worker, run = pick(workers, number), pick(runs, other)
        if not any(w.id == worker and run in w.held for w in self.workers):
            self.world.tell(ev.RunEnded(worker, run, "completed", ""))

    @precondition(lambda self: self.world.processes.gone)
    @rule(number=NUMBERS, kind=st.sampled_from((ev.WorkerExited, ev.WorkerFailed, ev.WorkerMisbehaved)))
    def letter_from_the_dead(self, number: int, kind: type) -> None:
        worker = pick(self.world.processes.gone, number)
        self.world.tell(kind(worker, "late"))
        self.world.tell(ev.WorkerReady(worker))

    @rule(number=NUMBERS)
    def letter_sent_twice(self, number: int) -> None:
        """A process says again that it is ready; a caller sends the same run again, or cancels what is over."""
        ready = [p for p in self.world.processes.all if p.state == "ready" and not p.silent]
        if ready:
            self.world.ready(pick(ready, number).id)
        if runs := [run for run in self.world.witness.runs.values() if run.state != "unspoken"]:
            run = pick(runs, number)
            self.world.tell(ev.RunRequested(run.id, run.agent, run.session))
        if over := list(self.world.witness.answers):
            self.world.tell(ev.CancelRequested(pick(over, number)))

    @rule()
    def letter_to_nobody(self) -> None:
        for event in (ev.TemplateReady("t-x"), ev.TemplateFailed("t-x", ""), ev.TemplateExited("t-x", ""),
                      ev.CancelRequested("r-x"), ev.SessionEndRequested("nobody", "s1"),
                      ev.RemovalRequested("nobody", "q-x"), ev.WorkerReady("w-x-1")):
            self.world.tell(event)
        self.world.request("nobody", "s1")

    def teardown(self) -> None:
        self.world.close()
