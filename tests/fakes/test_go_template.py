"""The renderer against Go itself: what is written down here as Go's was given by Go 1.23's own text/template."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.go_template import NotRenderedError, Struct, Template, TemplateError
from fakes.ollama_prompt import PromptTemplate, Turn
from po_distill.base_models import MISTRAL_OLLAMA_TEMPLATE, chatml_ollama_template

DATA = {
    "Messages": [
        {"Role": "system", "Content": "be good"},
        {"Role": "user", "Content": "hi <b> é"},
        {"Role": "assistant", "Content": "yo"},
    ],
    "System": "sys",
    "Empty": "",
    "List": [1, 2, 3],
    "Nested": {"A": {"B": "deep"}, "n": 4},
    "Yes": True,
    "No": False,
    "F": 1.5,
    "EmptyList": [],
    "Zero": 0,
}
RENDERED = [
    ("{{ .System }}", "sys"),
    ("a {{- .System -}} b", "asysb"),
    ("a  {{- /* a comment */ -}}  b", "ab"),
    ("{{/* a comment */}}x", "x"),
    ("{{range .Messages}}{{.Role}},{{end -}}   \n tail", "system,user,assistant,tail"),
    ('{{- "a" -}}  {{- "b" -}}', "ab"),
    ("{{-3}} {{- 3}}", "-33"),
    ('{{ "quoted \\"x\\" \\t é \\x41" }}{{ `raw \\n` }}', 'quoted "x" \t é Araw \\n'),
    ("{{ 'a' }} {{ 0x10 }} {{ 1e3 }} {{ -3 }} {{ 1.5 }} {{ 010 }}", "97 16 1000 -3 1.5 8"),
    ("{{ .Nope }} {{ .Nope.A.B }} {{ .Nested.A.C }}", "<no value> <no value> <no value>"),
    ("{{ .List }} {{ .Nested }} {{ .Yes }} {{ .F }} {{ .Zero }}", "[1 2 3] map[A:map[B:deep] n:4] true 1.5 0"),
    ("{{ $.Nested.A.B }} {{ $x := .Nested }}{{ $x.A.B }} {{ $x.n }}", "deep deep 4"),
    ("{{ (.Nested.A).B }} {{ (index .Messages 1).Role }}", "deep user"),
    ('{{ if .Nope }}a{{ else if eq .System "sys" }}b{{ else }}c{{ end }}', "b"),
    ("{{ if or .No .Empty .Zero .EmptyList }}t{{ else }}f{{ end }}", "f"),
    ("{{ with .Nested.A }}{{ .B }} {{ $.System }}{{ else }}n{{ end }}", "deep sys"),
    ("{{ with .Nope }}a{{ else with .System }}{{ . }}{{ end }}", "sys"),
    ("{{ with $x := 3 }}{{ $x }}{{ end }}{{ if $y := .System }}{{ $y }}{{ end }}", "3sys"),
    ("{{ $x := 1 }}{{ if .Yes }}{{ $x = 2 }}{{ $x := 3 }}{{ end }}{{ $x }}", "2"),
    (
        "{{- range $i, $m := .Messages }}{{ $i }}:{{ $m.Role }}={{ .Content }};{{ end }}",
        "0:system=be good;1:user=hi <b> é;2:assistant=yo;",
    ),
    (
        "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}{{ .Role }}{{ end }}{{ end }}",
        "assistant",
    ),
    ("{{ range .EmptyList }}x{{ else }}none{{ end }} {{ range .Nope }}x{{ else }}none{{ end }}", "none none"),
    ("{{ range $x := .EmptyList }}x{{ else }}{{ $x }}{{ end }}", "[]"),
    ("{{ range $k, $v := .Nested }}{{ $k }}={{ $v }} {{ end }}", "A=map[B:deep] n=4 "),
    ("{{ range .List }}{{ if eq . 2 }}{{ continue }}{{ end }}{{ . }}{{ end }}", "13"),
    ("{{ range .List }}{{ if eq . 2 }}{{ break }}{{ end }}{{ . }}{{ end }}", "1"),
    ('{{ len .System }} {{ len "é" }} {{ len .List }} {{ len .Nested }} {{ .Messages | len | eq 3 }}', "3 2 3 2 true"),
    (
        '{{ index .List 1 }} {{ index .Messages 0 "Role" }} {{ index .Nested "A" "B" }} {{ index "abc" 1 }}',
        "2 system deep 98",
    ),
    (
        "{{ slice .List 1 }} {{ slice .List 1 2 }} {{ slice .System 1 2 }} {{ len (slice .Messages 1) }}",
        "[2 3] [2] y 2",
    ),
    (
        '{{ eq .System "a" "sys" }} {{ ne .System "a" }} {{ eq 1.5 .F }} {{ eq .Nope "a" }} {{ eq .Nope nil }}',
        "true true true false true",
    ),
    ('{{ lt 1 2 }} {{ le 2 2 }} {{ gt "b" "a" }} {{ ge 1.5 2.5 }} {{ 3 | lt 2 }}', "true true true false true"),
    ("{{ and .Yes .System }} {{ and .No .System }} {{ or .No .System }} {{ or .No .Empty }}|", "sys false sys |"),
    ("{{ not .Yes }} {{ not .Empty }}", "false true"),
    ("{{ and .No (index .List 99) }} {{ or .Yes (index .List 99) }}", "false true"),
    ('{{ print "a" 1 2 "b" 3.5 true nil }} {{ println "a" 1 }}', "a1 2b3.5 true <nil> a 1\n"),
    (
        '{{ printf "%s-%d-%v-%q-%t-%5s|%-5s|%05d|%%" "a" 1 2 "q\\"x" true "r" "l" 42 }}',
        'a-1-2-"q\\"x"-true-    r|l    |00042|%',
    ),
    ('{{ printf "%d" "a" }} {{ printf "%s" }} {{ printf "a" 1 }}', "%!d(string=a) %!s(MISSING) a%!(EXTRA int=1)"),
    ('{{ .System | printf "%s-%s" "a" }}', "a-sys"),
    (
        "{{ print 1e100 1e20 0.000001 123456789.5 1000000.0 100000.0 }}",
        "1e+100 1e+20 1e-06 1.234567895e+08 1e+06 100000",
    ),
]
REFUSED = [
    ("{{ foo .X | bar }}", 'template: :1: function "foo" not defined'),
    ("{{ .X", "template: :1: unclosed action"),
    ("{{ if .X }}", "template: :1: unexpected EOF"),
    ("{{ end }}", "template: :1: unexpected {{end}}"),
    ("{{ else }}", "template: :1: unexpected {{else}}"),
    ("{{ if }}x{{ end }}", "template: :1: missing value for if"),
    ("{{ }}", "template: :1: missing value for command"),
    ("{{ | len }}", 'template: :1: unexpected "|" in command'),
    ('{{ .System | "x" }}', "template: :1: non executable command in pipeline stage 2"),
    ("{{ $nope }}", 'template: :1: undefined variable "$nope"'),
    ("{{ if $y := .System }}{{ end }}{{ $y }}", 'template: :1: undefined variable "$y"'),
    ("{{ $a, $b := .List }}", "template: :1: too many declarations in command"),
    ("{{ range $a, 1 := .List }}x{{ end }}", "template: :1: range can only initialize variables"),
    ('{{ "abc }}', "template: :1: unterminated quoted string"),
    ("{{ `abc }}", "template: :1: unterminated raw quoted string"),
    ("{{ (.System }}", "template: :1: unclosed left paren"),
    ("{{ .System) }}", "template: :1: unexpected right paren"),
    ("{{ a@b }}", "template: :1: bad character U+0040 '@'"),
    ("{{ : }}", "template: :1: expected :="),
    ("{{ 1a }}", 'template: :1: bad number syntax: "1a"'),
    ('{{ "a".B }}', 'template: :1: unexpected . after term "\\"a\\""'),
    ("{{ nil.A }}", 'template: :1: unexpected . after term "nil"'),
    ("{{/* open", "template: :1: unclosed comment"),
    ("{{/* a */ x}}", "template: :1: comment ends before closing delimiter"),
    ('{{-"a"}}', 'template: :1: illegal number syntax: "-"'),
    ("{{ break }}", "template: :1: {{break}} outside {{range}}"),
    ("{{ if .Yes }}a{{ else }}b{{ else }}c{{ end }}", "template: :1: expected end; found {{else}}"),
    ("{{ if .Yes }}{{ else range .List }}x{{ end }}", "template: :1: unexpected <range> in else"),
    ("{{ nil }}", 'template: :1:3: executing "" at <nil>: nil is not a command'),
    ('{{ "a" "b" }}', 'template: :1:3: executing "" at <"a">: can\'t give argument to non-function "a"'),
    ("{{ $x := 1 }}{{ $x 2 }}", 'template: :1:16: executing "" at <$x>: can\'t give argument to non-function $x'),
    ('{{ .Nested.A "x" }}', 'template: :1:10: executing "" at <.Nested.A>: A is not a method but has arguments'),
    ("{{ .System.A }}", 'template: :1:10: executing "" at <.System.A>: can\'t evaluate field A in type interface {}'),
    ("{{ len 3 }}", 'template: :1:3: executing "" at <len 3>: error calling len: len of type int'),
    ("{{ not 1 2 }}", 'template: :1:3: executing "" at <not>: wrong number of args for not: want 1 got 2'),
    ("{{ eq }}", 'template: :1:3: executing "" at <eq>: wrong number of args for eq: want at least 1 got 0'),
    ("{{ eq 1 }}", 'template: :1:3: executing "" at <eq 1>: error calling eq: missing argument for comparison'),
    (
        "{{ eq .System 1 }}",
        'template: :1:3: executing "" at <eq .System 1>: error calling eq: incompatible types for comparison',
    ),
    (
        "{{ lt .Yes .No }}",
        'template: :1:3: executing "" at <lt .Yes .No>: error calling lt: invalid type for comparison',
    ),
    (
        "{{ index .List 7 }}",
        'template: :1:3: executing "" at <index .List 7>: error calling index: index out of range: 7',
    ),
    (
        "{{ index .Nested 1 }}",
        'template: :1:3: executing "" at <index .Nested 1>: error calling index: value has type int; should be string',
    ),
    (
        "{{ slice .List 2 1 }}",
        'template: :1:3: executing "" at <slice .List 2 1>: error calling slice: invalid slice index: 2 > 1',
    ),
    ("{{ range .System }}x{{ end }}", 'template: :1:9: executing "" at <.System>: range can\'t iterate over sys'),
]

HELLO = [Turn("user", "Hello friend!"), Turn("assistant", "Hello human!"), Turn("user", "What is your name?")]
SYSTEM = Turn("system", "You are a helpful assistant!")


@pytest.mark.parametrize(("text", "rendered"), RENDERED)
def test_a_template_renders_as_in_go(text, rendered):
    assert Template(text).render(DATA) == rendered


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_template_is_refused_in_gos_words(text, message):
    with pytest.raises(TemplateError) as caught:
        Template(text).render(DATA)
    assert str(caught.value) == message


def test_an_error_names_its_line_and_column_and_where_an_open_action_began():
    with pytest.raises(TemplateError, match=r"^template: :3:15: executing \"\" at <\.System\.Bad>: can't evaluate"):
        Template("line one\n{{ if .Yes }}\n two {{ .System.Bad }}\n{{ end }}").render(DATA)
    with pytest.raises(TemplateError, match=r"^template: :3: unclosed action started at :2$"):
        Template("line one\n{{ if \n.Yes")


def test_a_range_counts_up_to_a_number_as_go_does_since_1_24():
    assert Template("{{ range 3 }}{{ . }}{{ end }}{{ range $i := 2 }}{{ $i }}{{ end }}").render({}) == "01201"


def test_a_struct_has_the_fields_that_it_has_and_no_others():
    message = Struct("*api.Message", {"Role": "user", "Content": "hi"})
    assert Template("{{ with .M }}{{ .Role }}: {{ .Content }}{{ end }}").render({"M": message}) == "user: hi"
    with pytest.raises(TemplateError, match=r"can't evaluate field Text in type \*api\.Message"):
        Template("{{ with .M }}{{ .Text }}{{ end }}").render({"M": message})


@pytest.mark.parametrize("text", ['{{ define "x" }}{{ end }}', '{{ template "x" }}', "{{ .System | html }}"])
def test_what_is_not_rendered_says_so_and_is_no_refusal_of_gos(text):
    with pytest.raises(NotRenderedError):
        Template(text)


@given(st.text().filter(lambda text: "{{" not in text))
def test_a_text_without_actions_renders_to_itself(text):
    assert Template(text).render({}) == text


@given(st.text())
def test_a_value_is_put_in_as_it_is_though_it_looks_like_an_action(text):
    assert Template("[{{ .System }}]").render({"System": text + "{{ .X }}"}) == f"[{text}{{{{ .X }}}}]"


PARTS = ["{{", "}}", "{{-", "-}}", " ", "\n", "if", "else", "end", "range", "with", ".A", "$", "$x", ":=", "=", ",",
         "(", ")", "|", '"', "`", "'", "eq", "and", "len", "nil", "true", "3", "1.5", "/*", "*/", "x", "."]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=24).map("".join))
def test_any_template_is_rendered_or_refused(text):
    try:
        rendered = Template(text).render({"A": [{"B": 1}]})
    except (TemplateError, NotRenderedError) as error:
        assert str(error)
    else:
        assert isinstance(rendered, str)


# --- as Ollama uses it --------------------------------------------------------------------------

MISTRAL = "[INST] {{ if .System }}{{ .System }}\n\n{{ end }}"


@pytest.mark.parametrize(
    "text",
    [
        MISTRAL + "{{ .Prompt }}[/INST] ",
        MISTRAL + "{{ .Prompt }}[/INST] {{ .Response }}",
        MISTRAL + '{{- range .Messages }}{{ if eq .Role "user" }}{{ .Content }}[/INST] '
        '{{ else if eq .Role "assistant" }}{{ .Content }}[INST] {{ end }}{{ end }}',
    ],
    ids=["no response", "response", "messages"],
)
def test_a_template_of_messages_and_one_of_a_prompt_make_the_same_of_a_conversation(text):
    template = PromptTemplate(text)
    said = "Hello friend![/INST] Hello human![INST] What is your name?[/INST] "
    assert template.render(HELLO) == "[INST] " + said
    assert template.render([SYSTEM, *HELLO]) == "[INST] You are a helpful assistant!\n\n" + said


def test_where_the_model_goes_on_the_template_ends():
    template = PromptTemplate(
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
        "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
    )
    assert template.render(HELLO).endswith("What is your name?<|im_end|>\n<|im_start|>assistant\n")
    assert template.render(HELLO[:2]).endswith("<|im_start|>assistant\nHello human!")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{{ .Prompt }}", ["prompt", "response"]),
        ("{{ with .Tools }}{{ . }}{{ end }} {{ .System }}", ["response", "system", "tools"]),
        ("{{ range .Messages }}{{ if eq .Role $.X }}{{ .Content }}{{ end }}{{ end }}",
         ["$", "content", "messages", "role", "x"]),
    ],
)  # fmt: skip
def test_a_template_knows_what_it_names_and_has_a_place_for_the_answer(text, names):
    assert PromptTemplate(text).names() == names


def test_neighbours_of_one_speaker_are_one_message_and_all_system_texts_one_system():
    text = "{{ .System }}|{{ range .Messages }}{{ .Role }}={{ .Content }};{{ end }}"
    turns = [
        SYSTEM,
        Turn("system", "Be brief."),
        Turn("user", "a"),
        Turn("user", "b"),
        Turn("tool", "x"),
        Turn("tool", "y"),
    ]
    whole = "You are a helpful assistant!\n\nBe brief."
    assert PromptTemplate(text).render(turns) == f"{whole}|system={whole};user=a\n\nb;tool=x;tool=y;"


def test_a_gap_is_filled_between_prompt_and_suffix():
    template = PromptTemplate(
        "{{ if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>{{ else }}{{ .Prompt }}{{ end }}"
    )
    assert template.render([], prompt="def add(", suffix="return x") == "<PRE> def add( <SUF>return x <MID>"
    assert template.render([Turn("user", "hello")]) == "hello"


def test_json_is_written_as_go_writes_it():
    assert PromptTemplate("{{ json .System }}{{ .Messages }}").render([]) == '""[]'
    rendered = PromptTemplate("{{ range .Messages }}{{ json .Content }}{{ end }}").render([Turn("user", '<a> & "b"')])
    assert rendered == r'"\u003ca\u003e \u0026 \"b\""'


def test_the_templates_of_the_base_models_are_rendered():
    mistral = PromptTemplate(MISTRAL_OLLAMA_TEMPLATE)
    assert mistral.render([SYSTEM, *HELLO]) == (
        "[INST] Hello friend![/INST] Hello human!</s>[INST] You are a helpful assistant!\n\nWhat is your name?[/INST]"
    )
    chatml = PromptTemplate(chatml_ollama_template("Default."))
    assert chatml.render(HELLO[:1]) == (
        "<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\nHello friend!<|im_end|>\n<|im_start|>assistant\n"
    )
