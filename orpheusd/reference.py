"""Writes the lower part of docs/operations.md from the operations table and the error tables:
`python -m orpheusd.reference`. What is above the line MADE is written by hand.
"""

from pathlib import Path

from orpheusd.errors import CODES, EXIT_FAULT, AddressInUse, AlreadyRunning
from orpheusd.operations import KINDS, OPERATIONS, Operation, Param

MADE = "<!-- From here on made by `python -m orpheusd.reference`; a test holds it equal to the code. -->\n"

HEAD = """
# What can be asked

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

LIFE = """
## Starting

One daemon has a state directory, and one a runtime directory. What is in its way is found before any process is
started, and the exit code says what it was.

| exit code | why |
|---|---|
| 0 | it was told to stop |
| 1 | something that is no socket is in the control socket's place, or the address cannot be listened on |
| 2 | a setting is wrong, a directory cannot be used, or its path is too long for sockets in it |
| {fault} | a fault of its own; half a daemon would be worse than none |
| {address} | another process listens on the HTTP door's address; the message names it where the kernel tells |
| {running} | another daemon has the directory; the message has its pid |

## Stopping

The first SIGTERM or SIGINT stops the daemon. From then on

1. new runs are refused with `draining`, those that wait too, and those that go on have `stop_timeout_s` (10 s) to
   finish; a second signal ends this wait at once;
2. what is not over is cancelled, and its caller is told `cancelled` and that the daemon was stopping;
3. workers that have not left after `grace_s` (2 s) are killed. The HTTP door answers what it still can and leaves in
   the same time, whoever does not read; so do clients of the control socket and operations such as a deploy, which
   are undone.

Where systemd holds the listening sockets, requests that were accepted over HTTP before the signal are not refused:
they have the same time to be over, those that wait for a worker too, and only then the first step begins. Whoever
connects later waits for the next daemon.

So the process is gone at most `grace_s` and a second after runs are over, have used up their time, or were not to be
waited for. Only a disk that does not keep up is given longer, because what is not written then is lost:
`stop_timeout_s` for the sessions and as much for the run log.

Other signals mean nothing and are ignored, however many come, but for those that say that the process is broken
(SIGQUIT, SIGSEGV, SIGABRT and their like), which end it at once, and those that suspend it.
"""

ERRORS = """
## Errors

Both doors tell the same codes. `Retry-After` is in seconds and is also in `data.retry_after_s`.

| code | HTTP | exit of `orpheusctl` | Retry-After |
|---|---|---|---|
"""


def page(text: str) -> str:
    """The page `text` as it should be. Raises ValueError when it does not have the line MADE."""
    by_hand, made, _ = text.partition(MADE)
    if not made:
        raise ValueError("the page lacks the line above which it is written by hand")
    return by_hand + made + reference()


def reference() -> str:
    """All that is made."""
    sections = [_section(operation) for operation in OPERATIONS]
    errors = [
        f"| `{code}` | {outcome.http_status} | {outcome.exit_code} | {outcome.retry_after_s or 'no'} |"
        for code, outcome in CODES.items()
    ]
    life = LIFE.format(fault=EXIT_FAULT, address=AddressInUse.exit_code, running=AlreadyRunning.exit_code)
    return HEAD + "\n" + "\n".join(sections) + life + ERRORS + "\n".join(errors) + "\n"


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
    path = Path(__file__).parent.parent / "docs/operations.md"
    path.write_text(page(path.read_text()))
