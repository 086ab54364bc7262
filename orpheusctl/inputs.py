"""The input of a run as the command line gives it: JSON in the argument, on stdin, or in a file.

It knows nothing of what an agent expects. Nothing is sent that the daemon would refuse for its form or size.
"""

import json
import sys
from typing import Any, NoReturn

from orpheusctl.client import encode
from orpheusd.errors import OrpheusError
from orpheusd.operations import INPUT_LIMIT_BYTES


def read(argument: str | None) -> Any:
    """The decoded input. Raises OrpheusError: invalid-request or too-large."""
    if argument is None:
        return {}
    if argument == "-":
        return decode(_from_stdin(), "stdin", "")
    if argument.startswith("@"):
        return decode(_from_file(argument[1:]), argument[1:], "")
    return decode(argument.encode("utf-8", "surrogateescape"), "the input", _quoting_hint(argument))


def decode(data: bytes, source: str, hint: str) -> Any:
    """The JSON value in `data`, as strictly as the daemon reads it: no NaN, no bytes that are not UTF-8."""
    if len(data) > INPUT_LIMIT_BYTES:
        _too_large(source)
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _not_json(source, f"byte {error.start} is not UTF-8", "") from None
    except json.JSONDecodeError as error:
        what = "it is empty" if not data.strip() else f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise _not_json(source, what, hint) from None
    except ValueError as error:
        raise _not_json(source, str(error), "") from None
    except RecursionError:
        raise _not_json(source, "it is nested too deeply", "") from None
    if len(encode(value)) > INPUT_LIMIT_BYTES:
        _too_large(source)
    return value


def _from_stdin() -> bytes:
    if sys.stdin is None:
        raise OrpheusError("invalid-request", "cannot read the input from stdin: it is closed")
    return sys.stdin.buffer.read(INPUT_LIMIT_BYTES + 1)


def _from_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(INPUT_LIMIT_BYTES + 1)
    except OSError as error:
        raise OrpheusError("invalid-request", f"cannot read the input from {path!r}: {error.strerror}") from None


def _quoting_hint(argument: str) -> str:
    """What a shell may have done to JSON that was not quoted."""
    if argument[:1] in ("{", "["):
        return "; put it in single quotes, so that the shell leaves it alone: '{\"query\": \"hello\"}'"
    return "; a plain text is JSON when it is quoted twice, '\"hello\"', and a file is named by @FILE"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _not_json(source: str, what: str, hint: str) -> OrpheusError:
    return OrpheusError("invalid-request", f"{source} is not JSON: {what}{hint}")


def _too_large(source: str) -> NoReturn:
    raise OrpheusError("too-large", f"{source} is over the limit of {INPUT_LIMIT_BYTES} bytes for an input; put large "
                                    f"data into the agent's workspace and send its name")
