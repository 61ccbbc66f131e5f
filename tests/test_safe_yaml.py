import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from po_distill import safe_yaml
from po_distill.errors import UnreadableYAMLError
from po_distill.roles.product_owner.role import ProductOwnerRole


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)
def test_what_yaml_writes_is_read_back(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert safe_yaml.load(text) == yaml.safe_load(text)


_OWN_LINES = st.lists(
    st.sampled_from(
        (
            *('a: "x"', "a:", "b:", "b: []", "  c:", "  c: []", '  d: "#: y"', '- "1"', '  - "2"', '    - "3"', ""),
            *('  - "é — 12:30 \u00a0 "', 'yes: "x"', 'on: "x"', '"a": "x"', 'a: ""', "a: 2023-01-01", '   - "x"'),
            *("    e:", "a: ", '- "\\n"', 'a: "\u2028"', 'a: "\ufeff"', 'a: "\U0001fffe"', 'a: "\t"', 'a: "x" '),
            *('a: "x"\r', "  - []", 'null: "x"'),
        )
    ),
    max_size=9,
)


@settings(max_examples=2000)
@given(_OWN_LINES)
@example(["a:", '- "1"'])
@example(["a:", "  c:", '    - "3"', '  d: "#: y"', "b: []"])
@example(["a:", '  - "2"', "  c:"])
def test_the_form_of_our_own_documents_is_read_as_the_loader_reads_it(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        expected = yaml.safe_load(text)
    except yaml.YAMLError:
        expected = None
    found = safe_yaml._read_own_form(text)
    assert found is None or (found == expected and list(found) == list(expected))


def test_the_documents_that_a_role_writes_are_in_that_form() -> None:
    role = ProductOwnerRole(contract="fenced")
    for concept in role.generate_concepts(20, seed=1):
        text = role.answer_by_rules(concept)
        for block in text.replace("```yaml VISION\n", "").replace("```yaml REVIEW\n", "").split("\n```"):
            assert not block or safe_yaml._read_own_form(block.strip("\n")) == yaml.safe_load(block)


def test_a_few_aliases_are_read() -> None:
    assert safe_yaml.load("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "line 1|line 2"),
        ("\n\nb: {", "is not YAML"),
        ("a: &x [*x]", "contains itself"),
        ("[" * 5000, "nests deeper"),
        ("- " * 5000, "nests deeper"),
        ("x: " + "é" * 1_000_001, "at most 1,000,000"),
        ("when: 2023-13-45", "cannot build"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("a: \x07", "is not YAML"),
        ("? [a]\n: b\n? {c: d}\n: e", ""),
    ],
)
def test_what_is_out_of_bounds_is_refused(text: str, says: str) -> None:
    with pytest.raises(UnreadableYAMLError, match=says) as caught:
        safe_yaml.load(text, what="the document")
    assert caught.value.fix


def test_a_yaml_bomb_is_refused_before_it_grows() -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(UnreadableYAMLError, match="aliases"):
        safe_yaml.load("\n".join(["l0: &l0 lol", *levels]))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        safe_yaml.load(text)
    except UnreadableYAMLError as error:
        assert error.problem


# --- the fast path ------------------------------------------------------------------------------


def bounds_by_events(text: str) -> tuple[int, int]:
    """(aliases, depth) as libyaml's parser counts them, up to where it gives up."""
    aliases = depth = deepest = 0
    try:
        for event in yaml.parse(text, Loader=safe_yaml._Loader):
            aliases += isinstance(event, yaml.AliasEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            deepest = max(deepest, depth)
    except (yaml.YAMLError, UnicodeError):
        pass
    return aliases, deepest


_PIECES = st.sampled_from(
    [
        *("- ", "-\t", "? ", ": ", "a: ", "a:", "-", "?", ":", "a", '"b"', "'c'", '"b\n', "'c\n", "|\n", ">-\n"),
        *("[", "]", "{", "}", ", ", "[a: ", "[? ", "&x ", "*x", "!t ", "!!map ", "# note"),
        *("---", "--- ", "...", "%YAML 1.1\n"),
        *("\n", "\r", "\r\n", "\x85", "\u2028", "\u2029", " ", "  ", "\t", "\ufeff", "\xa0", "\0"),
    ]
)
_REPEATED = st.tuples(_PIECES, st.integers(1, 60)).map(lambda pair: pair[0] * pair[1])
_STAIRS = st.tuples(
    st.sampled_from(["a:", "-", "?", "? a\n:", "- a:", "!t", "&x"]), st.integers(1, 60), st.integers(0, 2)
).map(lambda stair: "".join(f"{' ' * (step * stair[2])}{stair[0]}\n" for step in range(stair[1])))


@given(st.lists(_PIECES | _REPEATED | _STAIRS, max_size=12).map("".join))
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example("- " * 60 + "x")
@example("\ufeff" + "- " * 60 + "x")
@example("x\n---\n\ufeff" + "- " * 60 + "x")
@example("[a: " * 36)
@example("[? " * 36)
@example("a:\n" * 60)
@example("? " * 60 + "x")
@example("a: &x [1]\nb: *x")
def test_what_looks_within_bounds_has_no_alias_and_is_not_deep(text: str) -> None:
    if safe_yaml._is_plainly_within_bounds(text):
        aliases, depth = bounds_by_events(text)
        assert aliases == 0
        assert depth <= safe_yaml.MAX_DEPTH


def test_a_plain_document_takes_the_fast_path() -> None:
    """Else it would be of no use: the requirements of every concept are such a text."""
    for concept in ProductOwnerRole().generate_concepts(9, seed=2):
        assert safe_yaml._is_plainly_within_bounds(concept.requirements_yaml)


@pytest.mark.parametrize("start", ["", "\ufeff", "\n\ufeff", "--- \n\ufeff"])
def test_a_text_that_would_overflow_the_stack_is_refused_whatever_it_begins_with(start: str) -> None:
    script = (
        "import sys\nfrom po_distill import safe_yaml\nfrom po_distill.errors import UnreadableYAMLError\n"
        "try:\n    safe_yaml.load(sys.argv[1].encode().decode('unicode_escape') + '- ' * 400_000 + 'x')\n"
        "except UnreadableYAMLError as error:\n    print('refused')\n"
    )
    argument = start.encode("unicode_escape").decode()
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n")
