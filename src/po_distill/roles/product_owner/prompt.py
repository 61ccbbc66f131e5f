"""How the Product Owner is asked: the system texts and user templates of its contracts.

The texts are the project's own, for the job that production's role prompt describes. A contract
is data (`records.PromptContract`); its digest changes with every character here.
"""

from __future__ import annotations

import re

from po_distill.records import Concept, Message, PromptContract

ROLE = "product_owner"
CONTRACTS = ("fenced", "tagged", "json")
OUTPUT_FORMAT = "double-quoted/1"
NO_VISION = "(no existing vision)"

_JOB = """\
You are the Product Owner of a product team. Keep one product vision that stays true to the concept, and review the \
business analyst's requirements against it.
"""

_RULES = """\
Name requirement ids. Give at least two recommended actions. Carry an existing vision on.
Status: misaligned if a requirement contradicts the concept, else needs_adjustment if something the concept needs is \
missing, else aligned."""

_YAML_INSTRUCTIONS = """\
Act as senior PO; output YAML blocks EXACTLY as specified, every text in double quotes, [] for an empty list:
"""

_VISION_FORM = """\
product_name: "short name"
product_summary: "one paragraph"
target_users:
  - "audience"
value_proposition:
  - "outcome"
key_capabilities:
  - "capability"
non_goals:
  - "what stays out"
success_metrics:
  - "measure"
last_updated: "ISO time"
"""

_REVIEW_FORM = """\
status: "aligned | needs_adjustment | misaligned"
summary:
  - "finding"
requirements_alignment:
  aligned:
    - "ID: what fits"
  gaps:
    - "what is missing"
  conflicts:
    - "ID: what it contradicts"
recommended_actions:
  - "action"
narrative: "why this status"
"""

_JSON_FORM = """\
Act as senior PO; output one JSON object EXACTLY as specified, [] for an empty list:
{"product_vision": {"product_name": "short name", "product_summary": "one paragraph", "target_users": ["audience"], \
"value_proposition": ["outcome"], "key_capabilities": ["capability"], "non_goals": ["what stays out"], \
"success_metrics": ["measure"], "last_updated": "ISO time"}, "product_owner_review": {"status": \
"aligned | needs_adjustment | misaligned", "summary": ["finding"], "requirements_alignment": {"aligned": \
["ID: what fits"], "gaps": ["what is missing"], "conflicts": ["ID: what it contradicts"]}, \
"recommended_actions": ["action"], "narrative": "why this status"}}
"""

_SYSTEM = {
    "fenced": (
        f"{_JOB}{_YAML_INSTRUCTIONS}```yaml VISION\n{_VISION_FORM}```\n```yaml REVIEW\n{_REVIEW_FORM}```\n{_RULES}"
    ),
    "tagged": (
        f"{_JOB}{_YAML_INSTRUCTIONS}<VISION>\n{_VISION_FORM}</VISION>\n<REVIEW>\n{_REVIEW_FORM}</REVIEW>\n{_RULES}"
    ),
    "json": f"{_JOB}{_JSON_FORM}{_RULES}",
}

_LABELLED = "CONCEPT:\n{concept}\n\nEXISTING_VISION:\n{existing_vision}\n\nREQUIREMENTS:\n{requirements}"
_TEMPLATES = {
    "fenced": _LABELLED,
    "tagged": "### CONCEPT\n{concept}\n\n{vision_section}### REQUIREMENTS\n{requirements}\n\n### OUTPUT",
    "json": _LABELLED,
}

_FIELD = re.compile(r"\{(concept|existing_vision|vision_section|requirements)\}")


def product_owner_contract(name: str, system: str | None = None) -> PromptContract:
    """The contract of that name, with another system text where one is given."""
    return PromptContract(
        role=ROLE,
        name=name,
        system=_SYSTEM[name] if system is None else system.strip(),
        template=_TEMPLATES[name],
        output_format=OUTPUT_FORMAT,
    )


def render_prompt(contract: PromptContract, concept: Concept) -> tuple[Message, ...]:
    """The messages that ask about a concept; no system message where the system text is empty."""
    vision = (concept.existing_vision or "").strip()
    values = {
        "concept": concept.concept.strip(),
        "existing_vision": vision or NO_VISION,
        "vision_section": f"### EXISTING_VISION\n{vision}\n\n" if vision else "",
        "requirements": concept.requirements_yaml.strip(),
    }
    # One pass, so that a field name inside a concept stays text.
    user = _FIELD.sub(lambda match: values[match[1]], contract.template)
    system = (Message(speaker="system", content=contract.system),) if contract.system else ()
    return (*system, Message(speaker="user", content=user))
