"""Recorded completions in place of a model: answers that somebody has already, found again by concept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from po_distill.errors import InputError, ProviderError
from po_distill.interfaces import Role
from po_distill.records import Completion, Concept, ProviderSettings, Request, Response

_Content = tuple[str, str]


@dataclass(frozen=True)
class _Recorded:
    where: str  # file and line
    content: _Content | None  # concept text and requirements, where the row has them
    response: Response | str  # or what is wrong with the row


class ReplayProvider:
    """Answers from a JSONL file, `settings.model` being its path.

    Rows are `Completion` records, `{prompt, response}`, `{concept_id, concept, requirements_yaml, response}`, or
    concepts with one YAML text per document, which the role joins; a concept's fields may stand under `input`,
    an answer's under `output`. A concept is found by its text and requirements (spaces aside), else by its prompt,
    else by its id where the row says nothing else of it. Of several rows for one concept the first counts.

    Raises InputError where the file is missing or a line is not a JSON object.
    """

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        if not settings.model:
            raise InputError(
                "The replay provider needs the file of recorded completions.",
                "Give its path as the model: --model FILE.",
            )
        self._path, self._role = Path(settings.model), role
        self._by_content: dict[_Content, _Recorded] = {}
        self._by_id: dict[str, _Recorded] = {}
        self._by_prompt: dict[str, _Recorded] = {}
        for where, row in _rows(self._path):
            self._keep(where, row)

    async def generate(self, request: Request) -> Response:
        """The recorded answer. Raises ProviderError (`bad_answer`) where there is none for the concept."""
        recorded = self._find(request)
        if isinstance(recorded.response, str):
            raise ProviderError(
                f"{recorded.where} cannot be replayed: {recorded.response}", "Correct that row.", fault="bad_answer"
            )
        return recorded.response

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _find(self, request: Request) -> _Recorded:
        concept = request.concept
        if concept and (found := self._by_content.get(_content(concept))):
            return found
        if found := self._by_prompt.get(_squeezed(request.messages[-1].content if request.messages else "")):
            return found
        name = repr(concept.concept_id) if concept else "this prompt"
        found = self._by_id.get(concept.concept_id) if concept else None
        if found and found.content is None:
            return found
        problem = f"{self._path} holds no completion for the concept {name}."
        if found:
            problem = f"{found.where} is about another concept under the id {name}: its text or requirements differ."
        raise ProviderError(problem, "Record one, or leave the concept out.", fault="bad_answer")

    def _keep(self, where: str, row: dict[str, Any]) -> None:
        concept_id, content = self._concept_of(row)
        recorded = _Recorded(where, content, self._response_of(row))
        if content:
            self._by_content.setdefault(content, recorded)
        if concept_id:
            self._by_id.setdefault(concept_id, recorded)
        if isinstance(row.get("prompt"), str):
            self._by_prompt.setdefault(_squeezed(row["prompt"]), recorded)

    def _concept_of(self, row: dict[str, Any]) -> tuple[str | None, _Content | None]:
        if isinstance(row.get("prompt"), str):
            found = self._role.read_prompt(row["prompt"])
            return (None, _content(found)) if found else (None, None)
        fields = next((row[key] for key in ("concept", "input") if isinstance(row.get(key), dict)), row)
        concept_id = fields.get("concept_id", row.get("concept_id"))
        text, requirements = fields.get("concept"), fields.get("requirements_yaml")
        content = (
            (_squeezed(text), _squeezed(requirements))
            if isinstance(text, str) and isinstance(requirements, str)
            else None
        )
        return (concept_id if isinstance(concept_id, str) else None), content

    def _response_of(self, row: dict[str, Any]) -> Response | str:
        if "contract_digest" in row:
            try:
                completion = Completion.model_validate(row)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                return f"{'.'.join(map(str, first['loc']))}: {first['msg']}."
            finish = completion.finish if completion.finish in ("stop", "length", "blocked") else "other"
            return Response.model_validate(
                {
                    "text": completion.text,
                    "model": completion.model,
                    "finish": finish,
                    "usage": completion.usage,
                    "stand_in": completion.stand_in,
                }
            )
        model = row.get("model") if isinstance(row.get("model"), str) else self._path.name
        output = row.get("output")
        texts = (
            row.get("response"),
            output,
            self._role.join_documents({**row, **output} if isinstance(output, dict) else row),
        )
        text = next((text for text in texts if isinstance(text, str) and text.strip()), None)
        return Response(text=text, model=str(model)) if text else "it holds no answer."


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _object(line, f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}).", "Convert it to UTF-8.") from error
    except OSError as error:
        raise InputError(
            f"The recorded completions {path} cannot be read: {error.strerror or error}.", "Check the path."
        ) from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {line[:80]}", "Correct or delete that line.") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is expected.", "Correct or delete that line.")
    return value


def _content(concept: Concept) -> _Content:
    return _squeezed(concept.concept), _squeezed(concept.requirements_yaml)


def _squeezed(text: str) -> str:
    """The text with runs of white space as one space: prompts and files indent and end lines differently."""
    return " ".join(text.split())
