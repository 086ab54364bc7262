"""Which idle worker is the best: what a look at all of them would say, however they came to hold what they hold."""

from hypothesis import given
from hypothesis import strategies as st

from orpheusd.core.agent import Settings
from orpheusd.core.deadlines import FEW
from orpheusd.core.idle import Idle
from orpheusd.core.restart import Slot
from orpheusd.core.run import Run
from orpheusd.core.worker import Template, Worker

NUMBERS = st.integers(0, 5)
STEPS = st.lists(st.tuples(
    st.sampled_from(["add", "discard", "session", "session less", "run", "run less", "best"]), NUMBERS,
), max_size=300)  # fmt: skip


def _worker(number: int) -> Worker:
    return Worker(f"w-{number}", Template("t-1", "a", 1, Settings(), None), Slot(), 0.0)


def _plainly_best(order: list[Worker]) -> Worker | None:
    return min(order, key=lambda worker: (worker.sessions, len(worker.runs)), default=None)


@given(STEPS)
def test_the_best_is_what_a_look_at_all_of_them_says(steps: list[tuple[str, int]]) -> None:
    idle, order = Idle(), list[Worker]()
    workers = [_worker(number) for number in range(6)]
    for step, number in steps:
        worker = workers[number]
        if step == "add":
            idle.add(worker)
            order += [worker] if worker not in order else []
        elif step == "discard":
            idle.discard(worker)
            order = [other for other in order if other is not worker]
        elif step == "session":
            worker.sessions += 1
        elif step == "session less" and worker.sessions:
            worker.sessions -= 1
            idle.lightened(worker)
        elif step == "run":
            run = Run(f"r-{len(worker.runs)}", "a", None, "soft", "allow", False, 1.0, 1.0, 0.0)
            worker.runs[run.id] = run
        elif step == "run less" and worker.runs:
            worker.runs.popitem()
            idle.lightened(worker)
        elif step == "best":
            assert idle.best() is _plainly_best(order)
        assert list(idle) == [worker.id for worker in order] and len(idle) == len(order)
    assert idle.best() is _plainly_best(order)


def test_what_is_stale_does_not_heap_up() -> None:
    idle, worker = Idle(), _worker(1)
    for _ in range(100 * FEW):
        idle.add(worker)
        idle.discard(worker)
    idle.add(worker)
    assert len(idle._heap) <= 2 * len(idle) + FEW
    assert idle.best() is worker
