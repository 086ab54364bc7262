"""How a field of an answer reads for people: its name says its unit (`rss_bytes`, `idle_s`, `cpu_percent`).

Scripts get the bare values (`plain`), people get the same with units (`human`). It knows no command.
"""

import json
import time
from typing import Any

from orpheusctl.escape import json_text, one_line

NOTHING = "-"
_AGES_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def title(key: str) -> str:
    """The name of a field as a heading."""
    for suffix in ("_bytes", "_s", "_percent", "_at"):
        key = key.removesuffix(suffix)
    return key.replace("_", " ")


def plain(value: Any) -> str:
    """One value as one word or line, without units."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return one_line(value)
    return json_text(json.dumps(value, ensure_ascii=False))


def human(key: str, value: Any) -> str:
    """One value with the unit its name states."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if key.endswith("_bytes"):
            return size(value)
        if key.endswith("_s"):
            return duration(value)
        if key.endswith("_percent"):
            return f"{value:.1f} %"
        if key.endswith("_at"):
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    return plain(value)


def size(count_bytes: float) -> str:
    if count_bytes < 1000:
        return f"{count_bytes:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count_bytes /= 1000
        if count_bytes < 999.5:
            return f"{count_bytes:.1f} {unit}" if count_bytes < 10 else f"{count_bytes:.0f} {unit}"
    return f"{count_bytes:.0f} TB"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest_s = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def moment(text: str) -> float | str:
    """A moment as it is typed: an age (`1h`) or seconds since 1970 as such seconds, anything else as it is."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _AGES_S else (text, "")
    try:
        value = float(number)
    except ValueError:
        return text
    return time.time() - value * _AGES_S[unit] if unit else value


def clock(when: float) -> str:
    """A moment for people: local time to the millisecond."""
    return time.strftime("%m-%d %H:%M:%S", time.localtime(when)) + _millis(when)


def iso(when: float) -> str:
    """A moment for scripts: UTC, ISO 8601, to the millisecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when)) + _millis(when) + "Z"


def _millis(when: float) -> str:
    return f".{int(when % 1 * 1000):03d}"
