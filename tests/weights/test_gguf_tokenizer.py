import json

import pytest

pytest.importorskip("xllamacpp")
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import AutoTokenizer

from po_distill.errors import WeightsError
from po_distill.weights.checkpoint import read_config
from po_distill.weights.gguf import write_gguf
from po_distill.weights.gguf_tokenizer import CONTROL, read_tokenizer
from runtime import Runtime
from tiny_models import TEXTS, tiny_mistral, tiny_model

CHATS = [
    [{"role": "user", "content": TEXTS[0]}],
    [{"role": "system", "content": TEXTS[1]}, {"role": "user", "content": TEXTS[3]}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": TEXTS[2]}, {"role": "user", "content": "b"}],
    [{"role": "user", "content": "  leading and \t odd   spaces \n\n\n"}],
]
MESSAGES = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage}


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    return tiny_mistral(tmp_path_factory.mktemp("mistral") / "model")


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def read(folder):
    return read_tokenizer(folder, read_config(folder))


def test_mistrals_prompts_are_the_same_tokens_to_llama_cpp_transformers_and_mistral_itself(mistral, tmp_path):
    write_gguf(mistral, tmp_path / "m.gguf", "q8_0")
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    official = MistralTokenizer.v3()
    with Runtime(tmp_path / "m.gguf", n_ctx=64) as runtime:
        for chat in CHATS:
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            assert runtime.token_ids(chat) == ids
            request = ChatCompletionRequest(messages=[MESSAGES[turn["role"]](content=turn["content"]) for turn in chat])
            assert official.encode_chat_completion(request).tokens == ids
            assert ids[0] == 1 and ids.count(1) == 1  # one BOS


def test_mistrals_template_is_made_plain_and_bos_is_the_runtimes(mistral):
    tokenizer = read(mistral)
    assert (tokenizer.model, tokenizer.add_bos, tokenizer.add_space_prefix) == ("llama", True, False)
    assert "tools" not in tokenizer.chat_template and tokenizer.notes == ()
    assert tokenizer.types[3] == CONTROL and tokenizer.tokens[3] == "[INST]"
    named = {kind: tokenizer.tokens[number] for kind, number in tokenizer.ids.items()}
    assert (named["bos"], named["eos"], named["unk"]) == ("<s>", "</s>", "<unk>")


def test_a_space_before_every_text_is_said_where_the_tokenizer_puts_one(tmp_path):
    folder = tiny_mistral(tmp_path / "model")
    legacy = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    edit(
        folder / "tokenizer.json",
        lambda value: value.update(normalizer={"type": "Sequence", "normalizers": legacy}, pre_tokenizer=None),
    )
    assert read(folder).add_space_prefix is True


def test_a_rule_for_spaces_that_llama_cpp_does_not_have_is_refused(tmp_path):
    # "always" puts a space before "a" but not before " b"; both follow a special token in this template.
    folder = tiny_mistral(tmp_path / "model", prepend_scheme="always")
    template = "{{ bos_token }}{% for m in messages %}[INST]a[/INST] {{ m['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(WeightsError, match="rule for leading spaces"):
        read(folder)


def test_merges_that_no_scores_can_order_are_refused(mistral, tmp_path):
    folder = tiny_mistral(tmp_path / "model")
    edit(folder / "tokenizer.json", lambda value: value["model"]["merges"].append(value["model"]["merges"][0]))
    with pytest.raises(WeightsError, match="at different ranks"):
        read(folder)


def test_bos_is_not_added_where_the_chat_template_begins_without_it(tmp_path):
    folder = tiny_model(tmp_path / "model")
    post = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    edit(folder / "tokenizer.json", lambda value: value.update(post_processor=post))
    edit(folder / "tokenizer_config.json", lambda value: value.update(bos_token="<|endoftext|>"))
    tokenizer = read(folder)
    assert tokenizer.add_bos is False
    assert "does not begin with BOS" in tokenizer.notes[0]


def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path):
    folder = tiny_model(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(WeightsError, match="no chat template"):
        read(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    folder = tiny_model(tmp_path / "model")
    with pytest.raises(WeightsError, match="the embedding only 100 rows"):
        read_tokenizer(folder, {**read_config(folder), "vocab_size": 100})
