"""The life of a template's processes, from the first directory to the last: started here, or by an earlier daemon.

It makes what a template needs around it and takes it away again. What is said on its socket is not its business.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import orjson

from orpheusd.failpoints import reached
from orpheusd.process.adopted import AdoptedTemplate
from orpheusd.process.causes import cause_of
from orpheusd.process.channel import Listener
from orpheusd.process.entrance import Entrance
from orpheusd.process.launch import launch_template
from orpheusd.process.members import TemplateMember
from orpheusd.process.plan import Plan
from orpheusd.process.records import Record, Records
from orpheusd.process.sandbox import SOCKET_NAME, Interpreter, Isolation, RuntimeLib, template_argv
from orpheusd.process.shares import Shares


class Lives:
    """Invariant: a template has its directory, socket and record exactly while `live` is going on."""

    def __init__(
        self, runtime_dir: Path, isolation: Isolation, interpreter: Interpreter, lib: RuntimeLib, listener: Listener,
        note: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._links = runtime_dir / "t"
        self._records = Records(runtime_dir / "born")
        self._isolation = isolation
        self._interpreter = interpreter
        self._lib = lib
        self._listener = listener
        self._note = note
        self._shares = Shares()

    def orphans(self) -> list[Record]:
        """The templates that an earlier daemon started and that may still be there. What else it left is removed."""
        records = self._records.all()
        known = {record.template for record in records}
        for link_dir in self._links.iterdir() if self._links.exists() else ():
            if link_dir.name not in known:
                shutil.rmtree(link_dir, ignore_errors=True)
        return records

    async def live(self, template: TemplateMember, plan: Plan | None) -> str:
        """Start a template by `plan`, or await one that is there. Returns why it ended, once nothing of it is left."""
        link_dir = self._links / template.id
        try:
            link_dir.mkdir(mode=0o700, parents=True, exist_ok=plan is None)
            self._records.write(template.record)
            (link_dir / SOCKET_NAME).unlink(missing_ok=True)
            entrance = Entrance(f"{link_dir}/{SOCKET_NAME}", template.id, self._listener, self._shares)
            try:
                return await (self._await_orphan(template) if plan is None else self._launch(template, plan, link_dir))
            finally:
                entrance.close()
        except OSError as error:
            return f"it could not be started: {error}"
        finally:
            if template.channel is not None:
                template.channel.close()
            shutil.rmtree(link_dir, ignore_errors=True)
            self._records.forget(template.id)

    async def _await_orphan(self, template: TemplateMember) -> str:
        template.process = AdoptedTemplate(template.id)
        if template.kill_wanted:
            template.process.kill()
        return cause_of(await template.process.wait())

    async def _launch(self, template: TemplateMember, plan: Plan, link_dir: Path) -> str:
        command = template_argv(self._isolation, self._interpreter, plan.spec(template.id, link_dir), self._lib)
        template.setup = plan.setup_inside(command, self._isolation)
        line = orjson.dumps({"template_id": template.id, "nonce": template.nonce, "socket": command.socket})

        def on_output(text: str) -> None:
            template.output.append(text)
            self._note(template.id, text)

        template.process = process = await launch_template(command, line, on_output, self._isolation.units)
        reached("template-started")
        if template.kill_wanted:
            process.kill()
        status = await process.wait()
        said = f": {template.output[-1]}" if template.output and status != 0 else ""
        return f"{cause_of(status)}{said}"
