"""Who is let go from a full door: of the phases in their order, the one in it for longest, after its patience."""

from hypothesis import given
from hypothesis import strategies as st

from orpheusd.doors.http.waiting import PATIENCE_S, Phase, Waiting

STEPS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(Phase), st.sampled_from([0.0, 0.05, 0.15, 0.3])))


@given(STEPS)
def test_the_longest_wait_of_the_first_phase_that_had_its_patience(steps: list[tuple[int, Phase, float]]) -> None:
    waiting = Waiting[int]()
    now, number = 0.0, 0
    phases = dict.fromkeys(range(5), Phase.ANSWER)
    since: dict[int, tuple[float, int]] = {}  # the second breaks ties: who came first goes first
    for who, phase, passed_s in steps:
        waiting.change(who, phases[who], phase, now)
        phases[who], since[who] = phase, (now, number)
        number, now = number + 1, now + passed_s
        by_phase = [min((one for one in since if phases[one] is phase), key=since.__getitem__, default=None)
                    for phase in PATIENCE_S]
        expected = [one for one in by_phase
                    if one is not None and now - since[one][0] > PATIENCE_S[phases[one]]]
        assert waiting.longest(now) == (expected[0] if expected else None)
        assert waiting.somebody() == any(one is not None for one in by_phase)


def test_nobody_who_is_being_answered_is_let_go() -> None:
    assert PATIENCE_S.keys() == set(Phase) - {Phase.ANSWER, Phase.CLOSING}
