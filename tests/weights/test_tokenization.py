import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from po_distill.errors import InputError
from po_distill.weights.tokenization import IGNORED, TokenizedRow, tokenize_file
from tiny_models import tiny_model

PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the product for?"}]


def example(target: str = "For teams.", prompt: list[dict[str, str]] | None = None) -> dict[str, Any]:
    completion = [{"role": "assistant", "content": target}]
    return {"example_id": "1", "prompt": prompt or PROMPT, "completion": completion}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model(tmp_path_factory.mktemp("model") / "m"))


def tokenize(tokenizer: Any, folder: Path, *rows: Any, **limits: int) -> list[TokenizedRow]:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return tokenize_file(path, tokenizer, **{"max_seq_len": 512, **limits})


def test_the_prompt_is_as_the_runtime_renders_it_and_the_answer_with_its_end_is_under_the_loss(
    tokenizer: Any, tmp_path: Path
) -> None:
    (row,) = tokenize(tokenizer, tmp_path, example())
    asked = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(row.input_ids[: row.prompt_tokens]) == asked
    assert row.labels[: row.prompt_tokens] == [IGNORED] * row.prompt_tokens
    assert tokenizer.decode(row.labels[row.prompt_tokens :]) == "For teams.<|im_end|>"


def test_the_end_is_learned_although_the_padding_token_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (row,) = tokenize(tokenizer, tmp_path, example())
    assert row.labels[-1] == tokenizer.eos_token_id


def test_the_field_teams_rows_are_taken_as_they_are(tokenizer: Any, tmp_path: Path) -> None:
    (row,) = tokenize(tokenizer, tmp_path, {"prompt": "Hello", "response": "Hi"})
    assert tokenizer.decode(row.input_ids).startswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_rows_that_are_too_long_are_named_with_the_length_they_need(tokenizer: Any, tmp_path: Path) -> None:
    rows = [example("x " * 90) if line in (2, 5) else example() for line in range(1, 7)]
    with pytest.raises(InputError, match=r"2 of 6 rows are longer than 60 tokens \(lines 2 \(1\), 5 \(1\)\)") as caught:
        tokenize(tokenizer, tmp_path, *rows, max_seq_len=60)
    needed = int(caught.value.fix.split("--max-seq-len ")[1].split()[0])
    assert len(tokenize(tokenizer, tmp_path, *rows, max_seq_len=needed)) == 6
    with pytest.raises(InputError):
        tokenize(tokenizer, tmp_path, *rows, max_seq_len=needed - 1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{broken", "line 2: not JSON"),
        ({"prompt": "x", "response": ""}, "line 2: response is not a text, or empty"),
        ({"prompt": 7, "response": "x"}, "line 2: prompt is not a text"),
        ({"response": "x"}, "line 2: prompt is not a text"),
        (example("  "), "line 2: the completion is empty"),
        ({**example(), "completion": []}, "line 2: the completion is not one assistant message"),
        (example(prompt=[{"role": "assistant", "content": "x"}]), "line 2: the prompt does not end with a user"),
        ({"a": 1}, "line 2: example_id"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_line(
    tokenizer: Any, tmp_path: Path, row: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        tokenize(tokenizer, tmp_path, example(), row)
    assert len(tokenize(tokenizer, tmp_path, example(), example(), max_samples=1)) == 1
