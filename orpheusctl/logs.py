"""`orpheusctl logs`: the latest lines, or lines as they come. It keeps none of them."""

from orpheusctl import client
from orpheusctl.ask import request
from orpheusctl.client import Event
from orpheusctl.output import Output, Row
from orpheusctl.parser import Call


def execute(call: Call, output: Output) -> int:
    operation, params = request(call)

    def show(row: Row) -> None:
        if output.json_wanted:
            output.json_line(row)
        else:
            output.log_row(row)

    def happened(event: Event) -> None:
        if event.name == "log":
            show(event.data)
        elif event.name == "dropped":
            output.note(f"some lines were dropped, they came faster than they were read: {event.data}")

    with client.connect(call.arguments.socket) as daemon:
        if call.arguments.follow:
            # Nothing may be printed for days.
            daemon.stream(operation.name, params, happened, silence_s=None)
            return 0
        answer = daemon.call(operation.name, params)
    for row in answer["lines"]:
        show(row)
    if not answer["lines"] and output.draws:
        output.note(f"{call.arguments.agent} has printed nothing yet")
    return 0
