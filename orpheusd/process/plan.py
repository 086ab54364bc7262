"""What is needed to start a template of one agent version."""

from pathlib import Path
from typing import Any, NamedTuple

from orpheusd.process.launch import real_directory
from orpheusd.process.sandbox import Command, Isolation, TemplateSpec


class Plan(NamedTuple):
    """One agent version as its processes need it. `memory_bytes` is what one worker may use, 0 for any; `setup` is
    told to the template, secrets included."""

    agent: str
    version: int
    code_dir: Path
    workspace_dir: Path
    venv_dir: Path | None
    network: bool
    memory_bytes: int
    setup: dict[str, Any]

    def spec(self, template_id: str, link_dir: Path) -> TemplateSpec:
        """Raises OSError when the workspace is no directory of its own."""
        return TemplateSpec(
            template_id, self.agent, self.code_dir, real_directory(self.workspace_dir), self.venv_dir, link_dir,
            self.network)

    def setup_inside(self, command: Command, isolation: Isolation) -> dict[str, Any]:
        """The payload of `setup`, with the places of things as that template sees them."""
        return {**self.setup, "code_dir": command.code_dir, "workspace_dir": command.workspace_dir,
                "isolation": isolation.mode}
