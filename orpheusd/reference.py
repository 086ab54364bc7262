"""Writes docs/operations.md from the operations table and the error table: `python -m orpheusd.reference`."""

from orpheusd.errors import CODES
from orpheusd.operations import KINDS, OPERATIONS, Operation, Param

HEAD = """# Operations

<!-- Made by `python -m orpheusd.reference`; a test holds it equal to the code. Do not edit. -->

Everything a caller may ask, through either door. Over the control socket (`ctl.sock`, JSON-RPC 2.0, one object a
line) the method is the operation's name and the parameters are an object:

```console
$ echo '{"jsonrpc":"2.0","id":1,"method":"run","params":{"agent":"my-agent","input":{"query":"hi"}}}' \\
    | socat -t 60 - UNIX-CONNECT:/run/orpheus/ctl.sock
```

An answer has the request's `id` and a `result`; a refusal has an `error` whose `data.code` is a code of the table at
the end. Operations that stream send notifications named `<operation>.event` with the request's `id` before the
answer. Access: `read` < `run` < `admin`. Root, the daemon's own user and the admin group have `admin` on the control
socket; everybody else has nothing. The HTTP door has `run`.
"""

ERRORS = """
## Errors

Both doors tell the same codes. `Retry-After` is in seconds and is also in `data.retry_after_s`.

| code | HTTP | exit of `orpheusctl` | Retry-After |
|---|---|---|---|
"""


def reference() -> str:
    """The whole page."""
    sections = [_section(operation) for operation in OPERATIONS]
    errors = [
        f"| `{code}` | {outcome.http_status} | {outcome.exit_code} | {outcome.retry_after_s or 'no'} |"
        for code, outcome in CODES.items()
    ]
    return HEAD + "\n" + "\n".join(sections) + ERRORS + "\n".join(errors) + "\n"


def _section(operation: Operation) -> str:
    facts = [f"access `{operation.access.value}`"]
    if operation.http is not None:
        facts.append(f"HTTP `{operation.http[0]} {operation.http[1]}`")
    if operation.cli:
        facts.append(f"`orpheusctl {operation.cli}`")
    if operation.stream:
        facts.append("streams")
    lines = [f"## {operation.name}", "", f"{operation.summary[0].upper()}{operation.summary[1:]}. {'; '.join(facts)}."]
    if operation.params:
        lines += ["", "| parameter | what it is | must be |", "|---|---|---|"]
        lines += [_row(param) for param in operation.params]
    return "\n".join(lines) + "\n"


def _row(param: Param) -> str:
    rule = " or ".join(f"`{choice}`" for choice in param.choices) if param.choices else KINDS[param.kind].says
    default = "" if param.required else "; optional" + (
        f", default `{param.default}`" if param.default not in (None, {}, False) else "")
    return f"| `{param.name}` | {param.help} | {rule}{default} |"


if __name__ == "__main__":
    print(reference(), end="")
