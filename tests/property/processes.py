"""A process layer without processes: it takes the core's orders and remembers what the core would find out.

A process that dies stays here, dead and unreported, until its exit is told: so events about it may still come,
as they do from a real one. It does nothing by itself: the world decides who obeys, when, and who does not.
"""

from dataclasses import dataclass, field

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from tests.property.records import hold


@dataclass
class FakeTemplate:
    id: str
    agent: str
    state: str = "starting"  # or ready, dead
    asked: str = ""  # or stop, kill


@dataclass
class FakeWorker:
    """`runs` maps each run it has to the reason for which it was told to stop, or ""."""

    id: str
    template: str
    state: str = "starting"  # or ready, dead
    asked: str = ""  # or stop, abort, kill
    runs: dict[str, str] = field(default_factory=dict)


class FakeProcesses:
    """Invariant: `templates` and `workers` are those that have been ordered and not reported as exited;
    `gone` are workers that have."""

    def __init__(self) -> None:
        self.templates: dict[str, FakeTemplate] = {}
        self.workers: dict[str, FakeWorker] = {}
        self.gone: list[str] = []

    @property
    def all(self) -> list[FakeTemplate | FakeWorker]:
        return [*self.templates.values(), *self.workers.values()]

    @property
    def empty(self) -> bool:
        return not self.templates and not self.workers

    def carry_out(self, effect: ef.Effect) -> None:
        if isinstance(effect, ef.StartTemplate):
            self.templates[effect.template] = FakeTemplate(effect.template, effect.agent)
        elif isinstance(effect, ef.ForkWorker):
            template = self._template(effect.template, effect)
            state = "dead" if template.state == "dead" else "starting"
            self.workers[effect.worker] = FakeWorker(effect.worker, template.id, state)
        elif isinstance(effect, ef.StopTemplate):
            self._template(effect.template, effect).asked = "stop"
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
            worker = self._worker(effect.worker, effect)
            hold(effect.run not in worker.runs, f"{effect.run} is handed to {worker.id} twice")
            worker.runs[effect.run] = ""
        elif isinstance(effect, ef.CancelRun):
            worker = self._worker(effect.worker, effect)
            hold(effect.run in worker.runs, f"{effect} names a run that {worker.id} does not have")
            worker.runs[effect.run] = effect.reason
        elif isinstance(effect, ef.EndSession) and effect.worker is not None:
            self._worker(effect.worker, effect)

    def template_dies(self, template: FakeTemplate) -> None:
        """It is the first process of its sandbox: whatever it forked dies with it."""
        template.state = "dead"
        for worker in self.workers.values():
            if worker.template == template.id:
                worker.state = "dead"

    def reported(self, event: ev.Event) -> None:
        """The core is being told this; if it is about a process that is here, it is true of it from now on."""
        if isinstance(event, ev.TemplateReady | ev.WorkerReady):
            process: FakeTemplate | FakeWorker | None = self.templates.get(event[0]) or self.workers.get(event[0])
            if process is not None and process.state == "starting":
                process.state = "ready"
        elif isinstance(event, ev.RunEnded) and event.worker in self.workers:
            self.workers[event.worker].runs.pop(event.run, None)
        elif isinstance(event, ev.WorkerExited) and event.worker in self.workers:
            del self.workers[event.worker]
            self.gone.append(event.worker)
        elif isinstance(event, ev.TemplateExited) and event.template in self.templates:
            self.template_dies(self.templates.pop(event.template))

    def _template(self, id: str, effect: ef.Effect) -> FakeTemplate:
        hold(id in self.templates, f"{effect} is about a template that is gone")
        return self.templates[id]

    def _worker(self, id: str, effect: ef.Effect) -> FakeWorker:
        hold(id in self.workers, f"{effect} is about a worker that is gone")
        return self.workers[id]
