"""A provider that says one file's text to everything: a whole plugin."""

from pathlib import Path

from po_distill import Provider, ProviderSettings, Request, Response, Role
from po_distill.errors import ProviderError


class ParrotProvider(Provider):
    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        self.path = Path(settings.model or "parrot.txt")

    async def generate(self, request: Request) -> Response:
        if not self.path.exists():
            raise ProviderError(f"{self.path} is not there.", "Name a file: --model FILE.", fault="refused")
        return Response(text=self.path.read_text(), model=self.path.name)

    async def aclose(self) -> None:
        pass
