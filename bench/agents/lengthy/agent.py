"""Says much, so that whoever reads it slowly has something not to read: pieces of a stream, then a long result."""

PIECE = "x" * 60_000


def handler(input_data):
    for _ in range(input_data["pieces"]):
        yield PIECE
    return "x" * input_data["bytes"]
