"""Stories as text: one event a line, `[now, name, fields]`, so that what went wrong once can be told again."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from orpheusd.core import events as ev
from orpheusd.core.agent import Settings


class DaemonDied(NamedTuple):
    """No core hears of it: what comes after is told to a new one.

    Of those who are left, `dead` die unseen; `unread` are runs that the daemon had no time to hand over.
    """

    dead: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


Step = ev.Event | DaemonDied


def story_of(steps: Iterable[tuple[float, Step]]) -> str:
    """The lines of a story."""
    return "\n".join(json.dumps([now, type(step).__name__, _fields(step)]) for now, step in steps)


def read_story(lines: Iterable[str]) -> list[tuple[float, Step]]:
    """The steps of a story. A line that is a JSON object is about the story, and no part of it."""
    steps: list[tuple[float, Step]] = []
    for line in lines:
        told = json.loads(line)
        if isinstance(told, list):
            now, name, fields = told
            read = {key: _READ.get(key, _as_it_is)(value) for key, value in fields.items()}
            steps.append((now, DaemonDied(**read) if name == "DaemonDied" else getattr(ev, name)(**read)))
    return steps


def _fields(step: Step) -> dict[str, Any]:
    left_out = step._field_defaults
    fields = {key: value for key, value in step._asdict().items() if key not in left_out or value != left_out[key]}
    return {key: _WRITTEN.get(key, _as_it_is)(value) for key, value in fields.items()}


def _as_it_is(value: Any) -> Any:
    return value


def _settings(settings: Settings) -> dict[str, Any]:
    defaults = Settings()._asdict()
    return {key: value for key, value in settings._asdict().items() if value != defaults[key]}


_WRITTEN = {
    "settings": _settings,
    "undelivered": sorted,
    "orphans": lambda orphans: [[*orphan[:2], _settings(orphan.settings)] for orphan in orphans],
}
_READ = {
    "settings": lambda told: Settings(**told),
    "undelivered": frozenset,
    "orphans": lambda told: tuple(ev.Orphan(id, version, Settings(**settings)) for id, version, settings in told),
    "sessions": lambda told: tuple(ev.Seen(*seen) for seen in told),
    "unfinished": lambda told: tuple(ev.Unfinished(*run) for run in told),
    "runs": lambda told: tuple(ev.Unfinished(*run) for run in told),
    "workers": tuple,
    "dead": tuple,
    "unread": tuple,
}
