"""What is kept to explain runs is bounded, whatever their handlers say."""

from orpheusd.outcome import NO_WHY, Outcome
from orpheusd.why import MESSAGE_CHARS, Explanations


def test_of_a_long_message_the_beginning_is_kept() -> None:
    kept = Explanations()
    for length in (MESSAGE_CHARS, MESSAGE_CHARS + 1, 8192):
        kept.keep(Outcome(f"r-{length}", "failed", "handler-failed", "x" * length, b"", {}, "w-1", None, None, 0, 1.0,
                          "", NO_WHY, 0.0, {}))
    told = {length: kept.of(f"r-{length}")["because"][-1] for length in (MESSAGE_CHARS, MESSAGE_CHARS + 1, 8192)}
    whole = f"It ended failed: {'x' * MESSAGE_CHARS}"
    assert told == {MESSAGE_CHARS: whole, MESSAGE_CHARS + 1: whole + "…", 8192: whole + "…"}
