"""Stories as text: one event a line, `[now, name, fields]`, so that what went wrong once can be told again."""

import json
from collections.abc import Iterable
from typing import Any

from orpheusd.core import events as ev
from orpheusd.core.agent import Settings


def story_of(steps: Iterable[tuple[float, ev.Event]]) -> str:
    """The lines of a story."""
    return "\n".join(json.dumps([now, type(event).__name__, _fields(event)]) for now, event in steps)


def read_story(lines: Iterable[str]) -> list[tuple[float, ev.Event]]:
    """The events of a story. A line that is a JSON object is about the story, and no part of it."""
    steps: list[tuple[float, ev.Event]] = []
    for line in lines:
        told = json.loads(line)
        if isinstance(told, list):
            now, name, fields = told
            if "settings" in fields:
                fields["settings"] = Settings(**fields["settings"])
            if "undelivered" in fields:
                fields["undelivered"] = frozenset(fields["undelivered"])
            if "sessions" in fields:
                fields["sessions"] = tuple(ev.Seen(*seen) for seen in fields["sessions"])
            steps.append((now, getattr(ev, name)(**fields)))
    return steps


def _fields(event: ev.Event) -> dict[str, Any]:
    fields = event._asdict()
    if "settings" in fields:
        defaults = Settings()._asdict()
        fields["settings"] = {key: value for key, value in fields["settings"]._asdict().items()
                              if value != defaults[key]}
    if fields.get("undelivered"):
        fields["undelivered"] = sorted(fields["undelivered"])
    left_out = event._field_defaults
    return {key: value for key, value in fields.items() if key not in left_out or value != left_out[key]}
