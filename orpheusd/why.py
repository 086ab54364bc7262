"""Why a run was executed where it was, in plain words: what `orpheusctl why RUN` tells.

The facts are the supervisor's own, kept with the outcome of each recent run. It decides and looks up nothing.
"""

from collections import OrderedDict
from typing import Any

from orpheusd.errors import OrpheusError
from orpheusd.outcome import Outcome

#: A shorter wait is the time it takes to hand a run over.
WORTH_TELLING_S = 0.001
#: Runs that can be explained: the latest ones, some ten megabytes with what is kept of their messages. A handler's may
#: have 8 KiB, which the run log has.
KEPT_RUNS, MESSAGE_CHARS = 10_000, 300

_BY_CONTEXT = {
    "new": "The session was not known. {worker}, with the fewest sessions of {idle} open workers, is its home now.",
    "warm": "{worker} is the session's home and holds its memory.",
    "spilled": "The session's home, {home}, was busy for longer than `soft` affinity waits, so {worker}, one of "
               "{idle} open workers, took the run without the session's memory. The home stays {home}.",
    "lost": "The session's home had died and nothing was saved. {worker}, one of {idle} open workers, is the new one.",
    "restored": "The session's home had died. {worker}, one of {idle} open workers, is the new one, and found the "
                "state that `workspace.session` had saved.",
    None: "The run has no session. {worker} had the fewest sessions of the {idle} open workers.",
}


class Explanations:
    """Invariant: at most KEPT_RUNS outcomes, the latest, without what is large in them."""

    def __init__(self) -> None:
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()

    def keep(self, outcome: Outcome) -> None:
        message = outcome.message if len(outcome.message) <= MESSAGE_CHARS else f"{outcome.message[:MESSAGE_CHARS]}…"
        self._outcomes[outcome.run_id] = outcome._replace(message=message, result=b"", error={}, black_box={})
        if len(self._outcomes) > KEPT_RUNS:
            self._outcomes.popitem(last=False)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._outcomes

    def of(self, run_id: str) -> dict[str, Any]:
        """Raises OrpheusError(not-found)."""
        outcome = self._outcomes.get(run_id)
        if outcome is None:
            raise OrpheusError("not-found", f"nothing is known of why {run_id} ran where it did: it has not ended, or "
                                            f"is not among the last {KEPT_RUNS} runs of this daemon")
        return {
            "run_id": run_id, "state": outcome.state, "worker_id": outcome.worker_id, "session_id": outcome.session_id,
            "context": outcome.context, "affinity": outcome.why.affinity, "overlap": outcome.why.overlap,
            "waited_ms": round(outcome.why.waited_s * 1000, 3), "open_workers": outcome.why.idle,
            "home": outcome.why.home, "because": explain(outcome),
        }  # fmt: skip


def explain(outcome: Outcome) -> list[str]:
    """A few sentences, in the order in which things happened."""
    why = outcome.why
    waited = f"{why.waited_s * 1000:.3g} ms"
    if outcome.worker_id is None:
        return [f"No worker executed it: it was {outcome.state} after {waited}. {outcome.message}".strip()]
    sentences = []
    if why.waited_s >= WORTH_TELLING_S:
        who = "its home" if outcome.context == "warm" else "a worker"
        sentences.append(f"It waited {waited} for {who}, under affinity `{why.affinity}` and overlap `{why.overlap}`.")
    else:
        sentences.append("It started at once.")
    sentences.append(_BY_CONTEXT[outcome.context].format(
        worker=outcome.worker_id, idle=max(why.idle, 1), home=why.home or "its home"))
    if outcome.code:
        sentences.append(f"It ended {outcome.state}: {outcome.message}")
    return sentences
