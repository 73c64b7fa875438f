"""An agenda against a plain dict, whatever is put in and taken out of it."""

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.agenda import SPARE, Agenda

KEYS = st.sampled_from("abcd")
TIMES = st.integers(0, 5)


@given(st.lists(st.tuples(st.sampled_from(("put", "drop", "pop")), KEYS, TIMES)))
def test_what_is_due_first_comes_first_and_equals_as_they_were_put(
    steps: list[tuple[str, str, int]],
) -> None:
    agenda: Agenda[str, int] = Agenda()
    # In the order in which they were put.
    expected: dict[str, int] = {}
    for step, key, when in steps:
        if step == "put":
            expected.pop(key, None)
            expected[key] = when
            agenda.put(key, when)
        elif step == "drop":
            expected.pop(key, None)
            agenda.drop(key)
        else:
            first = min(expected, key=lambda each: expected[each], default=None)
            wanted = first if first is not None and expected[first] <= when else None
            if wanted is not None:
                del expected[wanted]
            assert agenda.pop(when) == wanted
        head = agenda.head()
        assert (head[0] if head else None) == min(expected.values(), default=None)
        assert len(agenda) == len(expected)
        assert agenda.when(key) == expected.get(key)


def test_what_was_left_behind_is_bounded_by_what_is_there() -> None:
    agenda: Agenda[str, int] = Agenda()
    for number in range(10 * SPARE):
        agenda.put("stays", number)
        agenda.put(f"goes{number}", 10**9)
        agenda.drop(f"goes{number}")
    assert len(agenda._heap) <= SPARE + 4
    assert agenda.pop(10**9) == "stays"
    assert agenda.head() is None
