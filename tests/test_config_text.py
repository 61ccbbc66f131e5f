"""A config's text is edited where the values stand, and every other byte stays."""

import datetime
import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from generated_configs import ROLE, GeneratedConfig, generated_configs
from po_distill.config_text import set_entries
from po_distill.errors import InputError
from po_distill.yaml_spelling import spell, spell_in_brackets

WANTED: dict[str, Any] = {"provider": "ollama", "model": "po-student-v1", "temperature": 0.4, "max_tokens": 4096}
IN_BRACKETS = "{provider: ollama, model: po-student-v1, temperature: 0.4, max_tokens: 4096}"
BLOCK = "provider: ollama\nmodel: po-student-v1\ntemperature: 0.4\nmax_tokens: 4096".splitlines()
ENDS = re.compile("\r\n|[\r\n]")


def edited(text: str) -> str:
    return set_entries(text, ("roles", ROLE), WANTED, what="config.yaml")


def lines(indent: int, end: str = "\n") -> str:
    return "".join(" " * indent + line + end for line in BLOCK)


def is_kept_in_order(parts: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(part in rest for part in parts)


@given(generated_configs())
@settings(max_examples=200, deadline=None)
def test_only_the_lines_of_the_role_change_and_only_its_values(config: GeneratedConfig) -> None:
    check_edit(config)


def check_edit(config: GeneratedConfig) -> None:
    try:
        text = edited(config.text)
    except InputError as refused:
        assert config.may_be_refused, refused
        return
    before, after = yaml.safe_load(config.text) or {}, yaml.safe_load(text)
    section = ((before.get("roles") or {}).get(ROLE)) or {}
    assert after == {**before, "roles": {**(before.get("roles") or {}), ROLE: {**section, **WANTED}}}
    assert is_kept_in_order(config.other_lines, ENDS.split(text.removeprefix("\ufeff")))
    assert [text.count(comment) for comment in config.comments] == [
        config.text.count(comment) for comment in config.comments
    ]
    assert text.startswith("\ufeff") == config.text.startswith("\ufeff")
    if body := config.text.removeprefix("\ufeff"):
        assert (ENDS.split(text)[-1] == "") == (ENDS.split(body)[-1] == "")
    assert set(ENDS.findall(text)) <= (set(ENDS.findall(config.text)) or {"\n"})
    assert edited(text) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # a section that stands there
        ("roles:\n  product_owner:\n    provider: v\n", f"roles:\n  product_owner:\n{lines(4)}"),
        (
            "roles:\n    product_owner:   # ours\n        model: 'g' # which\n        seed: 1\n    b: {}\n",
            "roles:\n    product_owner:   # ours\n        model: 'po-student-v1' # which\n        seed: 1\n"
            "        provider: 'ollama'\n        temperature: 0.4\n        max_tokens: 4096\n    b: {}\n",
        ),
        ("roles: {product_owner: {provider: v, model: g}}  # x", f"roles: {{product_owner: {IN_BRACKETS}}}  # x"),
        (
            'roles: { "product_owner": { "model": "g", } }',
            'roles: { "product_owner": { "model": "po-student-v1", "provider": "ollama", "temperature": 0.4, '
            '"max_tokens": 4096, } }',
        ),
        ("roles:\n  product_owner:  # none\n  b: c\n", f"roles:\n  product_owner:  # none\n{lines(4)}  b: c\n"),
        ("roles:\n  product_owner: ~  # n\n", f"roles:\n  product_owner: {IN_BRACKETS}  # n\n"),
        ("roles:\n  product_owner: &x\n", f"roles:\n  product_owner: &x\n{lines(4)}"),
        # sections that are missing
        ("", f"roles:\n  product_owner:\n{lines(4)}"),
        ("# c", ("# c\nroles:\n  product_owner:\n" + lines(4)).rstrip("\n")),
        ("--- # c\n...\n", f"--- # c\nroles:\n  product_owner:\n{lines(4)}...\n"),
        ("a: 1\r\n", "a: 1\r\nroles:\r\n  product_owner:\r\n" + lines(4, "\r\n")),
        ("a: 1\x85b: 2\x85", "a: 1\x85b: 2\x85roles:\x85  product_owner:\x85" + lines(4, "\x85")),
        (" a:\n    b: 1\n\n c: 1\n", f" a:\n    b: 1\n\n c: 1\n\n roles:\n    product_owner:\n{lines(7)}"),
        ("roles:\n  a: {b: c}\n\n# end\n", f"roles:\n  a: {{b: c}}\n  product_owner: {IN_BRACKETS}\n\n# end\n"),
        (
            "roles:\n  a:\n    b: c\n    # d: e\n# end\n",
            f"roles:\n  a:\n    b: c\n    # d: e\n  product_owner:\n{lines(4)}# end\n",
        ),
        ("roles: {a: {b: c}}", f"roles: {{a: {{b: c}}, product_owner: {IN_BRACKETS}}}"),
        ("{}", f"{{roles: {{product_owner: {IN_BRACKETS}}}}}"),
        (
            "roles:\n  a:\n    b: |\n      c\n\n\nd: e\n",
            f"roles:\n  a:\n    b: |\n      c\n  product_owner:\n{lines(4)}\n\nd: e\n",
        ),
        (
            "roles:\n  a:\n    b: |+\n      c\n\nd: e\n",
            f"roles:\n  a:\n    b: |+\n      c\n\n  product_owner:\n{lines(4)}d: e\n",
        ),
        # anchors, aliases, merge keys
        (
            "d: &d {provider: v, seed: 1}\nroles:\n  product_owner: *d\n  b: *d\n",
            "d: &d {provider: v, seed: 1}\nroles:\n  product_owner: {<<: *d, " + IN_BRACKETS[1:] + "\n  b: *d\n",
        ),
        (
            "d: &d {seed: 1}\nroles:\n  product_owner:\n    <<: *d\n",
            f"d: &d {{seed: 1}}\nroles:\n  product_owner:\n    <<: *d\n{lines(4)}",
        ),
        (
            "d: &d v\nroles:\n  product_owner: {provider: *d, model: &m  g}\n",
            "d: &d v\nroles:\n  product_owner: {provider: ollama, model: &m  po-student-v1, temperature: 0.4, "
            "max_tokens: 4096}\n",
        ),
    ],
)  # fmt: skip
def test_an_edit_keeps_the_style_of_the_file(text: str, wanted: str) -> None:
    assert edited(text) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("roles:\n  product_owner: &p {model: g}\n  b: *p\n", "line 3 uses the anchor &p of line 2 too"),
        ("roles:\n  product_owner: {model: &m g}\n  b: {model: *m}\n", "line 3 uses the anchor &m of line 2 too"),
        ("roles: &r\n  product_owner: {model: g}\nothers: {<<: *r}\n", "line 3 uses the anchor &r of line 1 too"),
        ("d: &d {product_owner: {seed: 1}}\nroles: *d\n", "roles.product_owner is not written out"),
        ("d: &d {product_owner: {seed: 1}}\nroles: {<<: *d}\n", "comes from an alias or a merge key"),
        ("d: &d {b: {seed: 1}}\nroles: *d\n", "roles in line 2 is an alias"),
        ("roles: {}\nroles: {}\n", "roles stands there 2 times, in lines 1 and 2"),
        ("roles:\n  product_owner: {model: a, 'model': b}\n", "product_owner.model stands there 2 times"),
        ("roles:\n  product_owner:\n    model: |\n      g\n", "roles.product_owner.model in line 3"),
        ("roles:\n  product_owner: {model: !!str g}\n", "roles.product_owner.model in line 2"),
        ("roles:\n  product_owner: {model: [a]}\n", "roles.product_owner.model in line 2"),
        ("roles:\n  product_owner: {model}\n", "roles.product_owner.model in line 2"),
        ("roles:\n  product_owner:\n    model: &m # c\n      g\n", "roles.product_owner.model in line 3"),
        ("roles:\n  product_owner:\n    prompt: |\n      g", "the block text from line 3 on ends the file"),
        ("roles:\n  ? product_owner\n", "roles.product_owner in line 2"),
        ("- a\n", "the whole file is no mapping, but of the type list"),
        ("--- ~\n", "line 1 says that it is empty"),
        ("roles: [a]\n", "roles is no mapping"),
        ("roles: {product_owner: text}\n", "roles.product_owner is no mapping, but of the type str"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_what_to_write_by_hand(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        edited(text)
    assert "config.yaml cannot be edited in place" in caught.value.problem
    assert says in caught.value.problem
    assert "max_tokens: 4096 under roles.product_owner by hand" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\n---\nb: 1\n", "several YAML documents, the second from line 2 on"),
        ("a:\n\tb: 1\n", "line 2, column 1"),
        ("a: !env X\n", "is not YAML"),
        ("a: &a [*a]", "alias"),
        ("a: [", "is not YAML"),
        ("a: \x07", "is not YAML"),
    ],
)
def test_what_is_no_config_is_refused_as_it_is_where_it_is_read(text: str, says: str) -> None:
    with pytest.raises(InputError, match=r"config\.yaml") as caught:
        edited(text)
    assert says in caught.value.problem


def test_a_value_that_is_there_already_is_left_as_it_is_written() -> None:
    section = "{provider: 'ollama', model: \"po-student-v1\", temperature: 4.0e-1, max_tokens: 4_096}"
    text = f"roles:\n  product_owner: {section}"
    assert edited(text) == text


def test_an_equal_value_of_another_type_is_written_anew() -> None:
    text = "roles: {product_owner: {provider: ollama, model: po-student-v1, temperature: '0.4', max_tokens: 4096.0}}"
    assert edited(text) == f"roles: {{product_owner: {IN_BRACKETS}}}"


def test_values_that_no_date_or_number_equals_are_compared_too() -> None:
    text = "a: .nan\nb: 2024-01-02\nroles: {product_owner: {model: 2024-01-02}}\n"
    after = yaml.safe_load(edited(text))
    assert after["b"] == datetime.date(2024, 1, 2) and after["a"] != after["a"]


_SCALARS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.sampled_from(["yes", "null", "~", "1.0", "0o7", "2024-01-01", "<<", '"""', "{{ x }}", "FROM /etc/passwd"]),
)


@given(_SCALARS, st.sampled_from([None, "'", '"']))
@settings(max_examples=300, deadline=None)
def test_a_scalar_reads_as_it_was_in_any_quotes(value: str | int | float, quote: str | None) -> None:
    written = spell(value, quote)
    assert not re.search("[\r\n\x85\u2028\u2029]", written)
    for text in (
        f"a: {written}",
        f"a: {written} # c",
        f"[{{a: {written}}}]",
        spell_in_brackets({"a": value}, quote, quote),
    ):
        read = yaml.safe_load(text)
        read = read[0] if isinstance(read, list) else read
        assert read == {"a": value} and type(read["a"]) is type(value)


@example("\ufeff\ufeff")
@given(st.text(alphabet="ab:-?{}[],&*!|>'\"%#\n\r\t ~<0.\ufeff\x85é", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_edited_rightly_or_refused(text: str) -> None:
    for given_text in (text, f"roles:\n  product_owner:{text}", f"roles:{text}\n"):
        try:
            after = edited(given_text)
        except InputError:
            continue
        assert yaml.safe_load(after)["roles"][ROLE].items() >= WANTED.items()
