"""How the Product Owner is asked: the system texts and user templates of its contracts.

The texts are the project's own, for the job that production's role prompt describes. A contract
is data (`records.PromptContract`); its digest changes with every character here.
"""

from __future__ import annotations

import re

from po_distill.dspy_form import CONTRACT
from po_distill.records import Concept, Message, PromptContract

ROLE = "product_owner"
CONTRACTS = ("fenced", "tagged", "json", "dspy")  # `dspy` needs the extra of that name
OUTPUT_FORMAT = "double-quoted/3"  # 2: the verdict stands behind its evidence; 3: and what is wrong before what fits
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
summary:
  - "finding"
requirements_alignment:
  gaps:
    - "what is missing"
  conflicts:
    - "what it contradicts: ID"
  aligned:
    - "ID: what fits"
status: "aligned | needs_adjustment | misaligned"
recommended_actions:
  - "action"
narrative: "why this status"
"""

_JSON_FORM = """\
Act as senior PO; output one JSON object EXACTLY as specified, [] for an empty list:
{"product_vision": {"product_name": "short name", "product_summary": "one paragraph", "target_users": ["audience"], \
"value_proposition": ["outcome"], "key_capabilities": ["capability"], "non_goals": ["what stays out"], \
"success_metrics": ["measure"], "last_updated": "ISO time"}, "product_owner_review": {"summary": \
["finding"], "requirements_alignment": {"gaps": ["what is missing"], "conflicts": ["what it contradicts: ID"], \
"aligned": ["ID: what fits"]}, "status": \
"aligned | needs_adjustment | misaligned", "recommended_actions": ["action"], "narrative": "why this status"}}
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

_YAML_TEXT = "YAML text, every text in double quotes, [] for an empty list:\n"

# What DSPy's prompts say of each field, and of the job. An optimizer changes the instructions, so the form is here.
FIELD_DESCRIPTIONS = {
    "concept": "what the product is to be",
    "requirements_yaml": "the business analyst's requirements, YAML text",
    "existing_vision": "the product vision of an earlier iteration, YAML text; may be empty",
    "product_vision": f"{_YAML_TEXT}{_VISION_FORM}".strip(),
    "product_owner_review": f"{_YAML_TEXT}{_REVIEW_FORM}".strip(),
}
INSTRUCTIONS = f"{_JOB}{_RULES}"
OTHER_INSTRUCTIONS = (
    "Act as senior Product Owner. Write the product vision, and review the requirements against the concept. Name "
    "requirement ids.",
    "You review a business analyst's requirements as Product Owner. State the vision first, then say which "
    "requirements fit it, what is missing, and what contradicts it.",
    "Given a concept and requirements, keep the product vision true to the concept. Then judge the requirements: "
    "misaligned where one contradicts the concept, needs_adjustment where something is missing, aligned otherwise.",
    "Produce the vision and the Product Owner's review. Be specific: name each requirement by its id, and recommend at "
    "least two actions.",
    "Write both documents carefully. Every requirement belongs in the review, under what fits or under what "
    "conflicts; what the concept needs and no requirement gives is a gap.",
)
"""Other ways to say the job: a student that has seen several follows those that an optimizer finds."""

_FIELD = re.compile(r"\{(concept|existing_vision|vision_section|requirements)\}")


def product_owner_contract(name: str, system: str | None = None) -> PromptContract:
    """The contract of that name, with another system text where one is given.

    Raises MissingExtraError where it is DSPy's, which is not installed.
    """
    if name == CONTRACT:
        from po_distill.roles.product_owner import program_prompt

        return program_prompt.contract(system)
    return PromptContract(
        role=ROLE,
        name=name,
        system=_SYSTEM[name] if system is None else system.strip(),
        template=_TEMPLATES[name],
        output_format=OUTPUT_FORMAT,
    )


def render_prompt(contract: PromptContract, concept: Concept) -> tuple[Message, ...]:
    """The messages that ask about a concept; no system message where the system text is empty."""
    if contract.name == CONTRACT:
        from po_distill.roles.product_owner import program_prompt

        return program_prompt.render(contract, concept)
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
