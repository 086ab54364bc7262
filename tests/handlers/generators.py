"""Generator handlers: what they yield is streamed, what they return is the result."""

import time

import workspace


def handler(input_data):
    """As many pieces as asked for; an optional value at the end."""
    for number in range(input_data.get("pieces", 0)):
        if number == input_data.get("fails_at"):
            raise ValueError(f"piece {number} failed")
        if input_data.get("emits"):
            workspace.emit({"between": number})
        yield {"piece": number}
    if "returns" in input_data:
        return input_data["returns"]


def stubborn(input_data):
    """Yields until it is told to stop, and says where it was told."""
    try:
        while True:
            if input_data.get("pause_s"):
                time.sleep(input_data["pause_s"])
            yield "x" * input_data.get("size", 1)
    except BaseException as error:
        workspace.path("told").write_text(type(error).__name__)
        raise


def unfit(_input):
    yield 1
    yield float("nan")


def large(input_data):
    for _ in range(input_data["pieces"]):
        yield "x" * 1000
    if input_data.get("returns"):
        return "a short answer"


def plain(input_data):
    """Looks like a plain function, and returns a generator."""
    return (number for number in range(3))
