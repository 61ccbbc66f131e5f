import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from po_distill import safe_yaml
from po_distill.errors import UnreadableYAMLError


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
