"""Rows that somebody made to harm whoever reads them: long where reading is slow, and odd where nobody looks."""

import json
import random
import re
from typing import Any

from po_distill.roles.product_owner.role import ProductOwnerRole

LONG = 95_000  # characters: nearly as long as a text of a row may be
HUGE = 2_000_000  # characters

Row = dict[str, Any]
ROLE = ProductOwnerRole()
CONCEPTS = ROLE.generate_concepts(40, seed=4)

# Stand for what is written into JSON as it is, as no Python value is written so.
_DEEP = "[" * 5_000 + "]" * 5_000
_MANY = ",".join(["{}"] * 40_000)
AS_JSON = {
    '"@digits@"': "9" * 5_000,
    '"@deep@"': _DEEP,
    '"@nested@"': '{"a":' * 300 + "1" + "}" * 300,
    '"@large@"': "1e999",
    '"@half@"': r'"\ud800"',
    '"@nul@"': r'"\u0000"',
    '"@many@"': f"[{_MANY}]",
}


def line_of(row: Row) -> bytes:
    """A row as JSON, without a line end."""
    line = json.dumps(row, ensure_ascii=False)
    for name, text in AS_JSON.items():
        line = line.replace(name, text)
    return line.encode("utf-8", "surrogatepass")


def hostile() -> dict[str, Row]:
    """Rows as long as they may be, of what a parser, a pattern or a comparison of each with each takes longest for."""
    concept = CONCEPTS[0]
    text = ROLE.answer_by_rules(concept)
    plain = {"concept_id": "x", "concept": concept.concept, "requirements_yaml": concept.requirements_yaml}

    def answered(response: str) -> Row:
        return {**plain, "response": response}

    def listing(lines: str) -> Row:
        return answered(text.replace("  aligned:\n", f"  aligned:\n{lines}"))

    def naming(value: str) -> Row:
        return answered(re.sub("(?m)^product_name: .*$", lambda _: f"product_name: {value}", text))

    def heading(lines: str) -> Row:
        return answered(text.replace("product_name", f"{lines}\nproduct_name", 1))

    def asking(lines: str, row: Row | None = None) -> Row:
        return {**(row or answered(text)), "requirements_yaml": f"functional_requirements:\n{lines}"}

    def numbered(form: str, count: int) -> str:
        return "".join(form.format(f"{number:x}") for number in range(count))

    aliases = "".join(f"{one}: &{one} [*{two},*{two}]\n" for two, one in zip("abcdefg", "bcdefgh", strict=True))
    merges = aliases.replace("[", "{<<: [").replace("]", "]}")
    items, pairs = numbered("    - k{0} m{0}\n", 4_500), random.Random(1)
    words = [f"t{number}" for number in range(60)]
    combined = "".join(f"    - {' '.join(pairs.sample(words, 2))} u{number}\n" for number in range(4_000))
    wanted = "".join(f"- description: {' '.join(pairs.sample(words, 11))}\n" for _ in range(1_500))
    documents = ROLE.normalised(ROLE.parse(text).documents)
    deep = "[" * 900 + "]" * 900
    return {
        "fences": answered("```yaml VISION\n" * (LONG // 15)),
        "fences without a line end": answered("```yaml VISION" * (LONG // 14)),
        "tags": answered("<VISION>\n" * (LONG // 20) + "<REVIEW>\n" * (LONG // 20)),
        "a fence and spaces": answered("```" + " " * LONG + "x"),
        "a language and spaces": answered("```yaml" + " \t" * (LONG // 2) + "x"),
        "a label and spaces": answered("```yaml VISION" + " " * LONG + "x"),
        "a bracket and spaces": answered("<" + " " * LONG + "x"),
        "brackets and spaces": answered(("<" + " " * 300) * (LONG // 301)),
        "spaces in a block": answered("```yaml VISION\n" + " " * LONG + "\n```"),
        "backticks": answered("`" * LONG),
        "line ends": answered("\n" * LONG),
        "keys without an end": answered("product_name\n" * (LONG // 13)),
        "braces": answered("{" * LONG),
        "balanced braces": answered('{"a":' * 15_000 + "1" + "}" * 15_000),
        "deep JSON": answered(json.dumps({**documents, "product_vision": "@"}).replace('"@"', f'{{"a": {deep}}}')),
        "deep list in JSON": answered(json.dumps(documents).replace('"target_users": [', f'"target_users": [{deep}, ')),
        "half a character in JSON": answered(json.dumps(documents).replace('_name": "', '_name": "\\ud800')),
        "half a character in a key": answered(json.dumps(documents).replace('"target_users"', '"\\udc00"')),
        "items in JSON": answered(json.dumps(documents).replace('"aligned": [', '"aligned": [' + '"a",' * 20_000)),
        "keys in JSON": answered(json.dumps(documents).replace('"target', numbered('"k{0}":1,', 7_000) + '"target')),
        "deep YAML": naming("[" * 40_000),
        "deep block YAML": naming("\n" + "- " * 40_000),
        "complex keys": naming("\n" + "? " * 40_000),
        "colons": naming("a: " * 30_000),
        "quotes": naming('"' * 90_000),
        "a folded text": naming('"' + "a\n  " * 22_000 + '"'),
        "comments": naming("x\n" + "#\n" * 45_000),
        "documents": naming("x\n" + "---\n" * 20_000),
        "anchors": naming("\n" + numbered("- &a{0} b\n", 7_000)),
        "digits": naming("1" * 90_000),
        "hexadecimal digits": naming("0x" + "f" * 90_000),
        "digits to the base of 60": naming("1" + ":59" * 30_000),
        "floating digits to the base of 60": naming("1" + ":59" * 30_000 + ".0"),
        "unknown keys": heading(numbered("k{0}: 1\n", 9_000)),
        "aliases": heading(f"a: &a [{'x,' * 30_000}]\n{aliases}"),
        "aliases of a text": heading(f"a: &a {'x' * 80_000}\n{aliases}"),
        "merged aliases": heading(f"a: &a {{{numbered('k{0}: 1,', 8_000)}}}\n{merges}"),
        "items": listing("    - a\n" * 11_000),
        "mappings in place of items": listing(numbered("    - FR{0}: a\n", 6_000)),
        "invented ids": listing("".join(f"    - FR{number:04}\n" for number in range(7_000))),
        "30,000 requirements": asking("- {}\n" * 15_000 + "- 1\n" * 15_000),
        "requirements": asking("- id: A\n" * 11_500),
        "described requirements": asking(numbered("- {{id: {0}, description: a{0}}}\n", 3_300)),
        "ids that no item names": asking(numbered("- id: Z{0}\n", 7_500), listing(items)),
        "words that no item has": asking(numbered("- description: a{0} b{0} c{0} d{0}\n", 2_400), listing(items)),
        "words that items share": asking(wanted, listing(combined)),
        "one requirement of many words": asking(f"- description: {numbered('z{0} ', 16_000)}\n", listing(combined)),
        "different words": {**answered(text), "concept": numbered("{0} ", 17_000)},
        "one long word": {**answered(text), "concept": "x" * LONG},
        "different words in an answer": answered(text + numbered("{0} ", 16_000)),
        "texts that are too long": {**answered(text * 500), "concept": "word " * 300_000},
        "an id that is too long": {**answered(text), "concept_id": "x" * HUGE},
    }


def elsewhere() -> dict[str, Row]:
    """Rows with what is beside concept and answer made hostile."""
    concept, text = CONCEPTS[0], ROLE.answer_by_rules(CONCEPTS[0])
    plain = {
        "concept_id": "x",
        "concept": concept.concept,
        "requirements_yaml": concept.requirements_yaml,
        "response": text,
    }
    asked = "CONCEPT:\nx\nREQUIREMENTS:\na: b\n\n"
    return {
        "a score of 400 digits": {**plain, "score": 10**400},
        "an infinite score": {**plain, "score": float("inf")},
        "a score that is no number": {**plain, "score": float("nan")},
        "half a character in the concept": {**plain, "concept": "@half@"},
        "half a character in the answer": {**plain, "response": "@half@"},
        "half a character in the id": {**plain, "concept_id": "@half@"},
        "half a character in the model": {**plain, "model": "@half@"},
        "half a character in the time": {**plain, "created_at": "@half@"},
        "half a character in the tier": {**plain, "tier": "@half@"},
        "half a character in the metadata": {**plain, "metadata": {"@half@": 1}},
        "half a character in the label": {**plain, "planted_label": "@half@"},
        "half a character in the group": {**plain, "metadata": {"group": "@half@"}},
        "deep metadata": {**plain, "metadata": {"a": "@deep@"}},
        "nested metadata": {**plain, "metadata": {"group": "@nested@"}},
        "metadata of many": {**plain, "metadata": {"a": "@many@"}},
        "metadata that is JSON": {**plain, "metadata": json.dumps({"a": _DEEP}).replace('"[', "[")},
        "paragraphs in a prompt": {"prompt": asked + "x [\n\n" * 6_000, "response": text},
        "headings in a prompt": {"prompt": "CONCEPT:\n" * 10_000, "response": text},
        "a heading and spaces in a prompt": {"prompt": "CONCEPT" + " " * 30_000 + "x", "response": text},
    }
