"""MIPROv2 for a student: who writes the instructions, and what fits into the context."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")
import dspy

from answers_of_dspy import CONCEPTS, example, saying
from po_distill.dspy import ProductOwner, mipro, role_instructions, student_lm
from po_distill.errors import SettingsError
from po_distill.roles.product_owner.prompt import INSTRUCTIONS, OTHER_INSTRUCTIONS

TRAIN, VALIDATION = [example(one) for one in CONCEPTS[:8]], [example(one) for one in CONCEPTS[8:]]


class Prompts(dspy.utils.BaseCallback):
    """The characters of every prompt."""

    def __init__(self):
        self.lengths = []

    def on_lm_start(self, call_id, instance, inputs):
        self.lengths.append(sum(len(turn["content"]) for turn in inputs.get("messages") or ()))


def optimized(num_ctx, **settings):
    prompts = Prompts()
    student = student_lm("offline", max_tokens=2048).copy(callbacks=[prompts])
    optimizer = mipro(
        prompt_model=role_instructions(), task_model=student, num_ctx=num_ctx, auto=None, num_candidates=4, **settings
    )
    found = optimizer.compile(ProductOwner(), trainset=TRAIN, valset=VALIDATION, num_trials=3, minibatch=False)
    return optimizer, found, prompts.lengths


@pytest.fixture(scope="module")
def roomy():
    with dspy.context(lm=None):
        return optimized(16_000)


def test_it_finishes_and_the_program_is_as_good_as_the_rules(roomy):
    assert roomy[1].score > 95
    assert roomy[0].left_out == 0


def test_the_instructions_are_the_roles_own_proposals(roomy):
    instructions = {log["program"].write.signature.instructions for log in roomy[1].candidate_programs}
    assert instructions <= {INSTRUCTIONS, *OTHER_INSTRUCTIONS}


def test_prompts_leave_room_for_the_answer_whatever_the_context(roomy):
    longest = max(roomy[2])
    assert longest > 7_000  # two demonstrations
    _, found, lengths = optimized(4_500)
    assert found.score > 95
    assert 3_000 < max(lengths) < longest - 1_500  # one
    assert len({length < 3_000 for length in optimized(3_400)[2]}) == 1  # none


def test_a_context_that_holds_no_bare_prompt_is_refused():
    with pytest.raises(SettingsError, match="do not fit into 1500 tokens"):
        optimized(1_500)


def test_the_student_never_writes_its_own_instructions():
    student = student_lm("offline")
    for writer in (student, student.copy(temperature=1.0), None):
        with pytest.raises(SettingsError, match="prompt_model"):
            mipro(prompt_model=writer, task_model=student, num_ctx=8192)


def test_what_is_not_known_has_to_be_said():
    with pytest.raises(SettingsError, match="context of offline/rules is not known"):
        mipro(prompt_model=role_instructions(), task_model=student_lm("offline"))
    with pytest.raises(SettingsError, match="no model"):
        mipro(prompt_model=role_instructions())


def test_context_and_slots_are_those_of_the_runtime(tmp_path):
    pytest.importorskip("xllamacpp")
    lm = student_lm(saying(tmp_path / "m.gguf", "hello you"), num_ctx=4096, parallel=3)
    optimizer = mipro(prompt_model=role_instructions(), task_model=lm)
    assert (optimizer.num_ctx, optimizer.num_threads) == (4096, 3)


def test_proposals_are_given_in_turn_in_the_form_that_is_asked_for():
    with dspy.context(lm=role_instructions()):
        asking = dspy.Predict("basic -> proposed_instruction")
        found = [asking(basic=str(number)).proposed_instruction for number in range(6)]
    assert found == [*OTHER_INSTRUCTIONS, OTHER_INSTRUCTIONS[0]]


def test_a_role_without_other_instructions_is_said(monkeypatch):
    from po_distill.roles.product_owner.role import ProductOwnerRole

    monkeypatch.setattr(ProductOwnerRole, "other_instructions", ())
    with pytest.raises(SettingsError, match="no other instructions"):
        role_instructions()
