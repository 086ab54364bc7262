"""Text of agents made safe to print: no control character, no change of writing direction, no broken UTF-8.

It knows nothing of terminals; what comes out is harmless on any of them.
"""

import re

_BIDI = "\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x1f\x7f-\x9f{_BIDI}\ud800-\udfff]")
#: What `json.dumps` leaves as it is and a terminal may obey. All of it can only stand inside JSON strings.
_UNSAFE_IN_JSON = re.compile(f"[\x7f-\x9f{_BIDI}\ud800-\udfff]")


def one_line(text: str) -> str:
    """`text` with every unsafe character, newlines and tabs too, shown as `\\x1b` or `\\u202e`."""
    return _UNSAFE.sub(_shown, text)


def lines(text: str) -> str:
    """As `one_line`, but newlines stay and tabs become spaces."""
    return "\n".join(_UNSAFE.sub(_shown, line) for line in text.expandtabs(8).split("\n"))


def json_text(text: str) -> str:
    """JSON text that means the same and holds no unsafe character outside ASCII escapes."""
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _shown(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
