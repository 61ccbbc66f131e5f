"""The road from adapter to Ollama on the same prompts: planted faults of a stage are named, the sound road passes."""

import io
import re

import pytest
from rich.console import Console

from po_distill.artifacts import write_jsonl
from po_distill.errors import InputError
from po_distill.records import Completion, Usage
from po_distill.reporting.stage_table import show_parity
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stage_parity import compare_stages

ROLE = ProductOwnerRole()
CASES = ROLE.generate_concepts(12, seed=4)
STAGES = ("adapter", "merged", "gguf", "ollama")


def answers(text, *, finish="stop", prompt_tokens=700, tokens=400) -> list[Completion]:
    return [
        Completion(
            concept=case,
            text=text(number, ROLE.answer_by_rules(case)),
            model="m",
            provider="p",
            contract_digest=ROLE.contract.digest,
            finish=finish,
            usage=Usage(prompt_tokens=prompt_tokens + number, completion_tokens=tokens),
        )
        for number, case in enumerate(CASES)
    ]


def sound(number, text):
    return text


def rounded(number, text):
    """As a quantized model answers: a third of the answers in other words somewhere."""
    return text.replace("Weekly use", "Use per week") if number % 3 == 0 else text


def base(number, text):
    return f"Sure! Here is a product vision for case {number}."


def going_on(number, text):
    return text + "\n<|im_start|>user\nThank you!<|im_end|>\n" * 20


def going_on_reworded(number, text):
    """As a quantized model without a stop token answers: complete, in words of its own, and up to the limit."""
    return going_on(number, text.replace("Less manual work", "Fewer steps"))


def off(number, text):
    return f"### Response:\nCase {number} is about a product."


def worse(number, text):
    return re.sub(r"^recommended_actions:\n(  - .*\n)+", "recommended_actions: []\n", text, flags=re.MULTILINE)


def road(**replaced) -> dict[str, list[Completion]]:
    plain = {"adapter": answers(sound), "merged": answers(sound), "gguf": answers(rounded), "ollama": answers(rounded)}
    return {**plain, **replaced}


def faults(stages, **more) -> dict[str, str]:
    return {one.stage: one.fault for one in compare_stages(stages, ROLE, **more).stages if one.fault}


def test_the_sound_road_passes():
    found = compare_stages(road(), ROLE, base=answers(base))
    assert found.passed
    assert [one.stage for one in found.stages] == list(STAGES)
    assert [one.before for one in found.stages] == [None, "adapter", "merged", "gguf"]
    assert found.stages[1].same_answers == 1.0
    assert found.stages[2].same_answers == pytest.approx(8 / 12)
    assert all(one.n == 12 for one in found.stages)


@pytest.mark.parametrize(
    ("stage", "planted", "fault"),
    [
        ("merged", answers(base), "no_op_merge"),
        ("gguf", answers(off, prompt_tokens=650), "wrong_template"),
        ("gguf", answers(off, prompt_tokens=0), "wrong_template"),  # counts unknown: the markers show it
        ("ollama", answers(going_on, finish="length"), "missing_stop"),
        ("ollama", answers(going_on, tokens=4096), "missing_stop"),
        ("gguf", answers(going_on_reworded, finish="length"), "missing_stop"),
        ("merged", answers(worse), "quality_lost"),
    ],
)
def test_a_planted_fault_is_named_at_its_stage(stage, planted, fault):
    stages = road(**{stage: planted})
    before = {name: stages[name] for name in STAGES[: STAGES.index(stage) + 1]}
    assert faults(before, base=answers(base), max_tokens=4096) == {stage: fault}


def test_what_comes_after_a_faulty_stage_is_held_against_it_and_not_blamed():
    found = compare_stages(
        road(merged=answers(base), gguf=answers(base), ollama=answers(base)), ROLE, base=answers(base)
    )
    assert [one.fault for one in found.stages] == [None, "no_op_merge", None, None]
    assert not found.passed


def test_without_the_base_a_merge_that_merged_nothing_is_lost_quality():
    assert faults(road(merged=answers(base), gguf=answers(base), ollama=answers(base))) == {"merged": "quality_lost"}


def test_stages_are_read_from_files_and_one_alone_is_refused(tmp_path):
    for name, given in road().items():
        write_jsonl(tmp_path / f"{name}.jsonl", given)
    paths = {name: tmp_path / f"{name}.jsonl" for name in STAGES}
    assert compare_stages(paths, ROLE).passed
    with pytest.raises(InputError, match="there is one"):
        compare_stages({"adapter": paths["adapter"]}, ROLE)
    with pytest.raises(InputError, match="'merged' has no completion for 2 of 12"):
        compare_stages({"adapter": paths["adapter"], "merged": answers(sound)[:10]}, ROLE)


def test_the_table_says_what_is_wrong_and_where():
    console = Console(file=io.StringIO(), width=120)
    show_parity(compare_stages(road(ollama=answers(going_on, finish="length")), ROLE), console)
    text = console.file.getvalue()
    assert "ollama: missing_stop: 1.00 of its answers are complete and go on" in text
    assert "a stage loses quality" in text
