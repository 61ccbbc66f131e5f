import json
import random

import pytest

pytest.importorskip("xllamacpp")
import gguf
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import AutoTokenizer

from po_distill.errors import WeightsError
from po_distill.weights.checkpoint import read_config
from po_distill.weights.gguf import write_gguf
from po_distill.weights.gguf_tokenizer import CONTROL, read_tokenizer
from runtime import Runtime
from tiny_models import TEXTS, byte_level_tokenizer, tiny_family, tiny_mistral, tiny_model
from tiny_sentencepiece import (
    GEMMA3_TEMPLATE,
    GEMMA_TOKENS,
    PHI3_TOKENS,
    write_gemma_tokenizer,
    write_phi3_tokenizer,
)

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


# --- the kinds of Gemma and Phi-3: small ones of the same make, as the real ones are only on a hub ----------------

PIECES = [
    *TEXTS,
    *("\n", "\n\n", "  ", "   ", " " * 9, " " * 17, "\t", "\t\t", " a", "\r\n", "x", "é", "東", "\u200b", "1234", "."),
    *("<table>", "</code>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|end|>", "<|endoftext|>", "<s>"),
]
KINDS = {
    "gemma2": lambda folder: write_gemma_tokenizer(tiny_family(folder, "gemma2", vocab_size=GEMMA_TOKENS)),
    "gemma3": lambda folder: write_gemma_tokenizer(
        tiny_family(folder, "gemma3", vocab_size=GEMMA_TOKENS), GEMMA3_TEMPLATE
    ),
    "phi3": lambda folder: write_phi3_tokenizer(tiny_family(folder, "phi3", vocab_size=PHI3_TOKENS)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_chats_are_the_same_tokens_to_llama_cpp_as_to_transformers(tmp_path, kind):
    folder = KINDS[kind](tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = random.Random(0)
    texts = ["".join(rng.choice(PIECES) for _ in range(rng.choice((1, 2, 3, 5, 9)))) for _ in range(250)]
    with Runtime(tmp_path / "m.gguf", n_ctx=64) as runtime:
        for text in texts:
            assert runtime.tokenize(text) == tokenizer(text)["input_ids"], text
        for chat in CHATS if kind != "gemma2" else CHATS[::2]:  # Gemma 2 knows no system text
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            assert runtime.token_ids(chat) == ids


def test_runs_of_spaces_are_added_tokens_of_spaces_to_llama_cpp(tmp_path):
    tokenizer = read(KINDS["gemma3"](tmp_path / "model"))
    assert tokenizer.tokens[17:20] == [" " * 2, " " * 3, " " * 4]  # "\u2581\u2581" and so on in tokenizer.json
    assert (tokenizer.add_bos, tokenizer.add_space_prefix, tokenizer.strips_right) == (True, False, False)


def test_phi_3s_tokens_that_swallow_white_space_are_known_to_llama_cpp_by_the_models_name(tmp_path):
    folder = KINDS["phi3"](tmp_path / "model")
    written = write_gguf(folder, tmp_path / "m.gguf", "f16", name="po-student-v1")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.name"].contents() == "po-student-v1 (phi-3)"
    assert any("ASCII white space only" in note for note in written.notes)
    write_gguf(folder, tmp_path / "m.gguf", "f16", name="My Phi-3 student")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["general.name"].contents() == "My Phi-3 student"


def test_a_name_that_would_make_llama_cpp_swallow_white_space_is_refused_for_other_tokenizers(tmp_path):
    folder = tiny_model(tmp_path / "model")
    with pytest.raises(WeightsError, match="'better-than-Phi3' makes"):
        write_gguf(folder, tmp_path / "m.gguf", "f16", name="better-than-Phi3")


@pytest.mark.parametrize(
    ("token", "flag", "words"),
    [
        ("<s>", {"rstrip": True}, "others than Phi-3's"),
        ("<|user|>", {"rstrip": False}, "others than Phi-3's"),
        ("<|user|>", {"lstrip": True}, "in front of it"),
    ],
)
def test_other_tokens_that_swallow_white_space_are_refused(tmp_path, token, flag, words):
    folder = KINDS["phi3"](tmp_path / "model")

    def change(value):
        next(entry for entry in value["added_tokens"] if entry["content"] == token).update(flag)

    edit(folder / "tokenizer.json", change)
    with pytest.raises(WeightsError, match=words):
        read(folder)


def test_runs_of_spaces_that_would_merge_otherwise_than_llama_cpp_cuts_them_are_refused(tmp_path):
    folder = KINDS["gemma3"](tmp_path / "model")

    def put_first(value):
        value["model"]["merges"].sort(key=lambda pair: "".join(pair) != "\u2581t")

    edit(folder / "tokenizer.json", put_first)
    with pytest.raises(WeightsError, match="do not merge from the left"):
        read(folder)


def test_added_tokens_without_a_row_in_the_embedding_are_left_out_and_named(tmp_path):
    folder = KINDS["gemma3"](tmp_path / "model")
    image = {"content": "<image>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].append({"id": GEMMA_TOKENS, **image}))
    tokenizer = read(folder)
    assert len(tokenizer.tokens) == GEMMA_TOKENS and "<image>" not in tokenizer.tokens
    assert tokenizer.notes == ("Added tokens without a row in the embedding are left out: <image>.",)


@pytest.mark.parametrize("split", ["gpt-4o", "dbrx"])
def test_the_splittings_of_phi_4_are_llama_cpps(tmp_path, split):
    folder = tiny_family(tmp_path / "model", "phi3", vocab_size=512)
    byte_level_tokenizer(split).save(str(folder / "tokenizer.json"))
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.pre"].contents() == split
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = random.Random(1)
    words = [*PIECES, "don't DON'T we'LL", "HTMLParser", "McDonald's", "Äpfel", "école", "٣٤", "a/b//\n"]
    with Runtime(tmp_path / "m.gguf", n_ctx=64) as runtime:
        for _ in range(150):
            text = " ".join(rng.choice(words) for _ in range(rng.choice((1, 2, 5))))
            assert runtime.tokenize(text) == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("split", ["gpt-4o", "tekken"])
def test_words_in_capitals_beyond_ascii_are_split_otherwise_and_the_file_says_so(tmp_path, split):
    folder = tiny_model(tmp_path / "model", "llama", split)
    written = write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert any("capitals beyond ASCII" in note for note in written.notes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with Runtime(tmp_path / "m.gguf", n_ctx=64) as runtime:
        assert runtime.tokenize("Größe") == tokenizer("Größe")["input_ids"]
        assert runtime.tokenize(" aÉCOLE") != tokenizer(" aÉCOLE")["input_ids"]


def test_a_word_that_llama_cpp_takes_for_a_special_token_is_named(tmp_path):
    folder = tiny_model(tmp_path / "model", vocab_size=513)
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    edit(folder / "tokenizer.json", lambda value: value["model"]["vocab"].update({"</s>": size}))
    assert "takes </s> in a text for a special token" in read(folder).notes[0]
