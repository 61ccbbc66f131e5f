"""A provider of one's own, asked by a Teacher: here a script's standard output is the model.

    python examples/provider_plugin.py [FOLDER]

Offline. A provider is one class with two async methods. Registered under an entry point it gets a name (see
docs/plugins.md); without one it is named `module:Class`, as below.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from po_distill import Provider, ProviderSettings, Request, Response, Role, Teacher
from po_distill.errors import ProviderError
from po_distill.plugins import load


class ScriptProvider(Provider):
    """Runs `settings.model` once per request: messages as JSON on its input, the answer on its output."""

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        self.script = settings.model or ""

    async def generate(self, request: Request) -> Response:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, self.script, stdin=pipe, stdout=pipe)
        messages = json.dumps([message.model_dump() for message in request.messages])
        answer, _ = await process.communicate(messages.encode())
        if process.returncode:
            raise ProviderError(f"{self.script} failed.", "Run it by hand.", fault="bad_answer")
        return Response(text=answer.decode(), model=Path(self.script).name)

    async def aclose(self) -> None:
        pass


# What stands for a model here: it reads the concept out of the prompt, and answers by the role's rules.
SCRIPT = """\
import json, sys
from po_distill.plugins import load
role = load("roles", "product_owner")()
print(role.answer_by_rules(role.read_prompt(json.load(sys.stdin)[-1]["content"])))
"""

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="po_distill_"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(SCRIPT)
    teacher = Teacher(
        provider="provider_plugin:ScriptProvider",  # the folder of this script is on Python's path
        model=str(folder / "model.py"),
        batch_size=2,
        journal_path=folder / "journal.sqlite",
        log_path=None,
    )
    for completion in teacher.answer(load("roles", "product_owner")().generate_concepts(3, seed=7)):
        assert completion.score is not None
        print(completion.concept.concept_id, completion.model, f"{completion.score.value:.3f}", completion.score.label)
