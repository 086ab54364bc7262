"""Writes the lower part of docs/operations.md from the operations table and the error tables:
`python -m orpheusd.reference`. What is above the line MADE is written by hand.
"""

from pathlib import Path

from orpheusd.audit import FILE_LIMIT_BYTES
from orpheusd.errors import CODES, EXIT_FAULT, AddressInUse, AlreadyRunning
from orpheusd.operations import KINDS, OPERATIONS, Operation, Param

MIB = 1024 * 1024

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
answer; over HTTP a run or a retry does, asked with `Accept: text/event-stream` and not by `stream`. Access: `read` <
`run` < `admin`. Root, the daemon's own user and the admin group have `admin` on the control socket; everybody else has
nothing. The HTTP door has `run`, and `admin` for who sends the token where that is switched on; it may ask for the
token for all of it ([http.md](http.md#everything-with-the-token)).
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

An agent that took the address while no daemon was there is killed with all that is in its sandbox, and the daemon
starts. Where systemd holds the listening sockets nobody can take it.

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

A daemon that has just started after a crash or a reload first hears the workers that it adopts, for five seconds at
most and within the same `stop_timeout_s`; then the first step begins. So the runs that they are in have their time as
well, and what they hold is recorded.

So the process is gone at most `grace_s` and a second after runs are over, have used up their time, or were not to be
waited for. Only a disk that does not keep up is given longer, because what is not written then is lost:
`stop_timeout_s` for the sessions and as much for the run log.

## Reloading and upgrading

`orpheusctl reload`, or SIGHUP, makes the daemon execute itself anew in the same process: what is installed now, with
the flags and the environment it was started with and the settings file as it is now. So an upgrade is

```sh
pip install --upgrade .     # into the environment that the daemon runs in
orpheusctl reload
```

What callers see of it is a pause:

1. The settings and the program are tried first (`orpheusd --check`). When they would not start the daemon, or
   `state_dir`, `runtime_dir`, `http`, `http_doors`, `http_admin` or `http_require_token` would change, the reload is
   refused with what was said, and nothing changes (but `http` may say what it likes while systemd holds the door).
   After SIGHUP the log has it.
2. Nothing more is read and nobody is accepted: requests wait in their connections, and new connections in the
   listening sockets. What has begun is answered; runs have `stop_timeout_s` (10 s) for that. Those who only watch
   (`logs -f`, `show --wait`, a second request under an idempotency key) are let go at once; `attach` asks again by
   itself.
3. Whoever is not answered by then is told `draining`. A run that was started goes on, and `orpheusctl attach RUN` or
   `GET /v1/runs/RUN?wait=30` tells its end; one that waits is cancelled, because its caller will ask again; a
   detached one stays in the log and is executed after the reload. An operation such as a deploy is undone.
4. What is known is written down, and the daemon executes the new program. The directories stay locked, and the
   listening sockets, the connections and the front doors go over to it: a client keeps its connection, over HTTP too.
   Templates and workers dial again as they do when a daemon was killed; what they remember stays.

A SIGTERM in step 2 stops the daemon instead: requests that waited are served or told `draining`. Later signals wait
for the new program, a second SIGHUP too. The pieces of an upload belong to the program that took them: a deploy that
is still uploading is refused after a reload and has to be sent again. The front doors go on with the code that they
were started with; one that is told to go (SIGTERM) is replaced by one of the new code.

A version may hand over in a way that the next one does not understand. Then the reload is as if the daemon had been
killed and started again: workers and their memory stay, connections end. Where systemd holds the listening sockets the
daemon ends for it, with {fault}, and systemd starts the next one with them.

Otherwise, only when the program cannot be executed although its trial went well does the daemon end, with {fault} and
as if it had been killed: workers wait for the next one for `orphan_ttl_s`.

Other signals mean nothing and are ignored, however many come, but for those that say that the process is broken
(SIGQUIT, SIGSEGV, SIGABRT and their like), which end it at once, and those that suspend it.

## When the daemon is killed

Nothing has to be done but to start it again; a service manager does. Templates and workers go on with what they are
doing, hold results that were not recorded, and dial again every 50 ms for up to `orphan_ttl_s` (60 s); then they
leave. The next daemon finds in the runtime directory (`born/`) which templates there are and how they prove
themselves, is ready at once, and adopts each agent's workers as they dial:

| what there was | what becomes of it |
|---|---|
| a session | stays where it is; its next answer is `warm` |
| a run that went on | goes on, and is recorded when it ends; `orpheusctl show` has its result, `attach` waits for it |
| a run that was over and not recorded | is recorded |
| a detached run that waited | waits again, and is executed once |
| a run that waited for its caller | `crashed`, never executed: its caller's connection is gone |
| a worker that does not dial within 5 s | is killed; if it is in a run, it has that run's timeout |
| a template that does not dial within 5 s | is killed with all that is in its sandbox |
| a worker that died meanwhile | its runs are `crashed`, cause unknown; its sessions are `lost` or `restored` |
| a template that speaks another version of the protocol | is killed with its workers |

So the runtime directory must outlive the daemon (tmpfiles.d makes it, and no `RuntimeDirectory=`, which would take it
away at each stop), and a service manager must not kill what is left when the daemon dies by itself.
"""

AUDIT = """
## Audit

Every operation that needs `admin` leaves a line of JSON in `audit.log` in the state directory, refused ones too, and
so does a connection to the control socket that was turned away (`connect`). Only the daemon's user can read it; beyond
{size} MiB it becomes `audit.log.1`, and the one before that goes. No value of a parameter is written down.

What the HTTP door refuses by itself (changes that are not switched on, no token, a wrong one) does not reach the
daemon and leaves none: nobody who may not change anything can push out the lines of who did. Of tokens the daemon's
own log has a warning, ten in ten seconds at most.

| field | |
|---|---|
| `time` | seconds since 1970 |
| `source` | the door: `ctl` or `http` |
| `uid`, `pid`, `exe` | the process that asked, as the kernel tells; over HTTP that is the front door |
| `operation`, `agent` | what was asked, of which agent where there is one |
| `params` | SHA-256 of the parameters as sorted JSON: of `env` the names, of a piece none; "" if nested too deeply |
| `outcome` | `done`, or the code of the refusal |
| `lost_before` | so many lines could not be written before this one |
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
    audit = AUDIT.format(size=FILE_LIMIT_BYTES // MIB)
    return HEAD + "\n" + "\n".join(sections) + life + audit + ERRORS + "\n".join(errors) + "\n"


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
