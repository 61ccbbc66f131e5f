"""A role: how it is asked, how its answers are read, written and scored.

    python examples/role.py

Offline. The same four steps serve teacher, training and evaluation, so there is one prompt and one reader.
"""

from po_distill.plugins import load

role = load("roles", "product_owner")(contract="fenced")  # or "tagged", "json"; prompt="..." for another system text
concept = role.generate_concepts(1, seed=7)[0]

print(f"contract {role.contract.name}, {role.contract.digest[:19]}")
for message in role.render(concept):
    print(f"--- {message.speaker}: {len(message.content)} characters")

# An answer as models write it: talk around it, an unquoted time, an item that YAML reads as a mapping.
text = role.answer_by_rules(concept)
sloppy = "Here it is:\n" + text.replace('last_updated: "', "last_updated: 2026-11-23 # ").replace(
    '- "FR001: ', '- FR001: "'
)
answer = role.parse(sloppy)
print("read in spite of its form:", sorted(answer.documents), "violations:", list(answer.violations))

canonical = role.canonical(answer.documents, stamp="2026-11-23T00:00:00Z")
score = role.score(concept, canonical)
print(f"written canonically: {score.value:.3f}, {score.label}, production can read it: {score.valid}")
for part, value in score.parts.items():
    print(f"  {part}: {value:.3f}")
