"""A command that is one request and one answer: its arguments become the operation's parameters, the answer is shown.

Which parameters there are is the operations table's business, how an answer reads is `answers.py`'s.
"""

from argparse import Namespace
from typing import Any

from orpheusctl import answers, client
from orpheusctl.commands import Command
from orpheusctl.output import Output
from orpheusctl.parser import Call
from orpheusd.operations import BY_NAME, Operation, check_params


def execute(call: Call, output: Output) -> int:
    operation, params = request(call)
    with client.connect(call.arguments.socket) as daemon:
        answer = daemon.call(operation.name, params)
    if output.json_wanted:
        output.json(answer)
    else:
        answers.show(call.command.words, answer, call.arguments, output)
    return answers.exit_code(call.command.words, answer)


def request(call: Call) -> tuple[Operation, dict[str, Any]]:
    """The operation asked for and its parameters, checked. Raises OrpheusError(invalid-request)."""
    command, arguments = call
    one = command.one and getattr(arguments, "agent", None) is not None
    operation = BY_NAME[command.one if one else command.operation]
    params = given(command, arguments)
    check_params(operation, params)
    return operation, params


def given(command: Command, arguments: Namespace) -> dict[str, Any]:
    """The parameters that the command line states, by their names in the operations table."""
    params: dict[str, Any] = {}
    for argument in command.arguments:
        value = getattr(arguments, argument.name)
        if argument.param and value is not None and value is not False:
            params[argument.param] = argument.constant or value
    return params
