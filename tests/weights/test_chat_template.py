import pytest

pytest.importorskip("transformers")
from po_distill.base_models import (
    MISTRAL_7B_INSTRUCT,
    MISTRAL_OLLAMA_TEMPLATE,
    QWEN2_5_7B_INSTRUCT,
    SMOLLM2_135M_INSTRUCT,
    chatml_ollama_template,
)
from po_distill.errors import WeightsError
from po_distill.weights.chat_template import (
    PROBES,
    known_form,
    plain_template,
    read_chat_template,
    render,
    renders_alike,
)
from po_distill.weights.checkpoint import locate
from tiny_models import CHATML, MISTRAL_TEMPLATE

# The parts of Qwen2.5's template that a chat without tools goes through, and the branches that it does not.
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{- tools | tojson }}{{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
        or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TOKENS = {"bos": "<s>", "eos": "</s>"}


@pytest.mark.parametrize("template", [QWEN, MISTRAL_TEMPLATE], ids=["qwen", "mistral"])
def test_a_template_with_tools_is_replaced_by_a_plain_one_that_renders_every_probe_alike(template):
    plain, note = plain_template(template, **TOKENS)
    assert note is None and "tool" not in plain
    for probe in PROBES:
        assert render(plain, probe, **TOKENS) == render(template, probe, **TOKENS)
    longer = [
        *PROBES[3],
        {"role": "assistant", "content": "'quoted' {{ braces }}"},
        {"role": "user", "content": "\n x"},
    ]
    assert render(plain, longer, **TOKENS) == render(template, longer, **TOKENS)


def test_a_template_of_no_known_form_is_kept_with_a_note():
    template = "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}### {{ m['content'] }}{% endfor %}"
    plain, note = plain_template(template, **TOKENS)
    assert plain == template
    assert "no plain equivalent" in note


def test_a_template_without_tools_is_kept_byte_for_byte():
    assert plain_template(CHATML, **TOKENS) == (CHATML, None)


@pytest.mark.parametrize(
    ("template", "spec"),
    [(QWEN, QWEN2_5_7B_INSTRUCT), (MISTRAL_TEMPLATE, MISTRAL_7B_INSTRUCT)],
    ids=["qwen", "mistral"],
)
def test_the_registered_ollama_template_is_that_of_the_form_that_the_chat_template_renders(template, spec):
    form = known_form(template, **TOKENS)
    assert form is not None
    by_form = MISTRAL_OLLAMA_TEMPLATE if form.name == "mistral" else chatml_ollama_template(form.default_system)
    assert by_form == spec.ollama_template


def test_smollm2s_ollama_template_is_that_of_its_own_chat_template():
    form = known_form(read_chat_template(locate("smollm2-135m-instruct").path), bos="<|im_start|>", eos="<|im_end|>")
    assert form is not None
    assert chatml_ollama_template(form.default_system) == SMOLLM2_135M_INSTRUCT.ollama_template


def test_chatml_without_a_default_system_text_is_known_as_such():
    form = known_form(CHATML, bos="", eos="<|im_end|>")
    assert form is not None and (form.name, form.default_system) == ("chatml", None)


def test_templates_that_differ_in_one_line_end_do_not_render_alike():
    assert not renders_alike(CHATML, CHATML.replace("<|im_end|>\n", "<|im_end|>"), **TOKENS)


def test_a_template_that_renders_nothing_is_like_no_other():
    broken = "{{ raise_exception('no') }}"
    assert not renders_alike(broken, broken, **TOKENS)


def test_a_template_cannot_reach_into_python():
    import jinja2

    with pytest.raises(jinja2.exceptions.SecurityError):
        render("{{ ''.__class__.__mro__[1].__subclasses__() }}", PROBES[0], **TOKENS)


def test_rendering_is_transformers_own():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate("smollm2-135m-instruct").path)
    for probe in PROBES:
        expected = tokenizer.apply_chat_template(list(probe), add_generation_prompt=True, tokenize=False)
        ours = render(tokenizer.chat_template, probe, bos=tokenizer.bos_token, eos=tokenizer.eos_token)
        assert ours == expected


def test_named_templates_are_read_by_the_name_default(tmp_path):
    config = '{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    assert read_chat_template(tmp_path) == "yes"


def test_a_folder_without_a_template_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no chat template"):
        read_chat_template(tmp_path)
