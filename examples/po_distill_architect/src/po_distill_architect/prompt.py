"""How the architect is asked: the system texts and the user template of its two contracts.

A contract is data (`records.PromptContract`). Its digest changes with every character here, and with OUTPUT_FORMAT,
which counts up when `documents.render_yaml` writes another form.
"""

from __future__ import annotations

import re

from po_distill.records import Concept, Message, PromptContract

ROLE = "architect"
CONTRACTS = ("fenced", "json")
OUTPUT_FORMAT = "double-quoted/1"

_JOB = """\
You are the architect of a product team. Turn the requirements into user stories, and design the components for them.
"""

_RULES = """\
Each functional requirement has a story; estimates are 1, 2, 3, 5 or 8. Decisions name the other requirements.
Blockers: requirements that a constraint rules out. Questions: requirements that leave something to be decided.
Feasibility: infeasible with a blocker, else needs_clarification with a question, else feasible."""

_YAML_FORM = """\
Answer with two YAML blocks EXACTLY as specified, every text in double quotes, [] for an empty list:
```yaml STORIES
stories:
  - id: "S1"
    title: "short title"
    as_a: "user"
    i_want: "what"
    so_that: "why"
    acceptance:
      - "criterion"
    requirement_ids:
      - "FR001"
    estimate: "3"
```
```yaml ARCHITECTURE
components:
  - name: "component"
    responsibility: "what it does"
    interfaces:
      - "how it is called"
decisions:
  - "ID: decision"
risks:
  - "risk"
blockers:
  - "ID: why it cannot be built"
questions:
  - "ID: what is open"
feasibility: "feasible | needs_clarification | infeasible"
```
"""

_JSON_FORM = """\
Answer with one JSON object EXACTLY as specified, [] for an empty list:
{"stories": {"stories": [{"id": "S1", "title": "short title", "as_a": "user", "i_want": "what", "so_that": "why", \
"acceptance": ["criterion"], "requirement_ids": ["FR001"], "estimate": "3"}]}, "architecture": {"components": \
[{"name": "component", "responsibility": "what it does", "interfaces": ["how it is called"]}], "decisions": \
["ID: decision"], "risks": ["risk"], "blockers": ["ID: why it cannot be built"], "questions": ["ID: what is open"], \
"feasibility": "feasible | needs_clarification | infeasible"}}
"""

_SYSTEM = {"fenced": f"{_JOB}{_YAML_FORM}{_RULES}", "json": f"{_JOB}{_JSON_FORM}{_RULES}"}
_TEMPLATE = "CONCEPT:\n{concept}\n\nPRODUCT_VISION:\n{vision}\n\nREQUIREMENTS:\n{requirements}"
_FIELD = re.compile(r"\{(concept|vision|requirements)\}")
_SECTION = re.compile(r"^(CONCEPT|PRODUCT_VISION|REQUIREMENTS):[ \t]*+$", re.MULTILINE)


def architect_contract(name: str, system: str | None = None) -> PromptContract:
    """The contract of that name, with another system text where one is given."""
    return PromptContract(
        role=ROLE,
        name=name,
        system=_SYSTEM[name] if system is None else system.strip(),
        template=_TEMPLATE,
        output_format=OUTPUT_FORMAT,
    )


def render_prompt(contract: PromptContract, concept: Concept) -> tuple[Message, ...]:
    """The messages that ask about a concept; no system message where the system text is empty."""
    values = {
        "concept": concept.concept.strip(),
        "vision": (concept.existing_vision or "").strip(),
        "requirements": concept.requirements_yaml.strip(),
    }
    # One pass, so that a field name inside a concept stays text.
    user = _FIELD.sub(lambda match: values[match[1]], contract.template)
    system = (Message(speaker="system", content=contract.system),) if contract.system else ()
    return (*system, Message(speaker="user", content=user))


def read_prompt(text: str) -> Concept | None:
    """The concept in a prompt as `render_prompt` writes it; None where a section is missing."""
    parts = _SECTION.split(text)
    sections = {label: body.strip() for label, body in zip(parts[1::2], parts[2::2], strict=True)}
    concept, requirements = sections.get("CONCEPT"), sections.get("REQUIREMENTS")
    if not concept or not requirements:
        return None
    vision = sections.get("PRODUCT_VISION")
    return Concept(concept_id="prompt", concept=concept, requirements_yaml=requirements, existing_vision=vision)
