import json

import pytest

from haiku import HaikuRole, haiku, haiku_concept
from po_distill.artifacts import write_jsonl
from po_distill.errors import ContractMismatchError, InputError
from po_distill.recorded_answers import answers_to, read_completions, read_recorded_cases
from po_distill.roles.product_owner.role import ProductOwnerRole

ROLE = HaikuRole()
CASES = [haiku_concept(number) for number in range(3)]


def row(number: int, **more) -> dict[str, object]:
    case = CASES[number]
    names = ("concept_id", "concept", "requirements_yaml")
    return {**{name: getattr(case, name) for name in names}, "response": haiku("spring"), **more}


def test_rows_of_the_fewest_fields_are_read_and_the_others_kept(tmp_path):
    usage = {"latency_s": 2.5, "prompt_tokens": 70, "completion_tokens": 30, "first_token_s": 0.5, "load_s": 1.0}
    write_jsonl(tmp_path / "s.jsonl", [row(0), row(1, **usage, finish_reason="MAX_TOKENS", model="gpt")])
    first, second = read_completions(tmp_path / "s.jsonl", ROLE)
    assert (first.model, first.usage.latency_s, first.finish) == ("s.jsonl", 0.0, "stop")
    assert {name: getattr(second.usage, name) for name in usage} == usage
    assert (second.model, second.finish) == ("gpt", "length")


@pytest.mark.parametrize("value", ["x", None, -1, float("nan"), True, [1], 10**400])
def test_times_that_are_none_count_as_not_known(tmp_path, value):
    write_jsonl(tmp_path / "s.jsonl", [row(0, latency_s=value)])
    assert read_completions(tmp_path / "s.jsonl", ROLE)[0].usage.latency_s == 0.0


def test_a_row_without_an_answer_is_an_answer_that_nobody_can_read(tmp_path):
    write_jsonl(tmp_path / "s.jsonl", [row(0, response="")])
    assert read_completions(tmp_path / "s.jsonl", ROLE)[0].text == ""


def test_result_files_of_the_field_are_read_with_their_concepts_from_the_cases(tmp_path):
    role = ProductOwnerRole()
    concepts = role.generate_concepts(2, seed=1)
    answer = role.answer_by_rules(concepts[1])
    vision, review = (answer.split(f"```yaml {name}\n")[1].split("\n```")[0] for name in ("VISION", "REVIEW"))
    results = [
        {
            "concept_id": concepts[0].concept_id,
            "raw_response": "as it came",
            "vision_yaml": vision,
            "review_yaml": review,
        },
        {"concept_id": concepts[1].concept_id, "raw_response": "", "vision_yaml": vision, "review_yaml": review},
    ]
    (tmp_path / "r.json").write_text(json.dumps({"model": "x", "results": results}))
    first, second = read_completions(tmp_path / "r.json", role, known=concepts)
    assert first.text == "as it came"
    assert role.score(concepts[1], second.text).valid
    with pytest.raises(InputError, match="result 1"):
        read_completions(tmp_path / "r.json", role)


def test_tries_stand_in_the_order_of_their_attempts_else_of_the_file(tmp_path):
    write_jsonl(tmp_path / "s.jsonl", [row(0, attempt=1, response="late"), row(0, attempt=0, response="early")])
    (tries,) = answers_to(CASES[:1], read_completions(tmp_path / "s.jsonl", ROLE), ROLE, "s")
    assert [one.text for one in tries.answers] == ["early", "late"]
    write_jsonl(tmp_path / "s.jsonl", [row(0, response="early"), row(0, response="late")])
    (tries,) = answers_to(CASES[:1], read_completions(tmp_path / "s.jsonl", ROLE), ROLE, "s")
    assert tries.first.text == "early"
    assert [case.concept_id for case in read_recorded_cases(tmp_path / "s.jsonl", ROLE)] == ["H-00000"]


def test_a_concept_under_two_ids_is_two_cases_with_answers_of_their_own(tmp_path):
    write_jsonl(tmp_path / "s.jsonl", [row(0), row(0, concept_id="other", response="no fence")])
    cases = read_recorded_cases(tmp_path / "s.jsonl", ROLE)
    assert [case.concept_id for case in cases] == ["H-00000", "other"]
    found = answers_to(cases, read_completions(tmp_path / "s.jsonl", ROLE), ROLE, "s")
    assert [tries.first.text for tries in found] == [haiku("spring"), "no fence"]


def test_an_answer_to_other_requirements_under_the_same_id_is_no_answer(tmp_path):
    write_jsonl(tmp_path / "s.jsonl", [row(0, requirements_yaml="season: autumn")])
    with pytest.raises(InputError, match=r"1 of 1 .*H-00000 \(1 of these ids are there, with another concept"):
        answers_to(CASES[:1], read_completions(tmp_path / "s.jsonl", ROLE), ROLE, "s")


def test_rows_that_name_another_contract_are_refused(tmp_path):
    write_jsonl(tmp_path / "s.jsonl", [row(0, contract_digest=HaikuRole(prompt="Other.").contract.digest)])
    with pytest.raises(ContractMismatchError, match="H-00000"):
        answers_to(CASES[:1], read_completions(tmp_path / "s.jsonl", ROLE), ROLE, "s")


@pytest.mark.parametrize("text", ["{", "[]", '{"results": 3}', '{"results": [1]}', "7"])
def test_files_that_hold_no_results_are_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError):
        read_completions(tmp_path / "r.json", ROLE)


def test_lines_under_the_name_of_a_json_file_are_read_as_lines(tmp_path):
    write_jsonl(tmp_path / "r.json", [row(0), row(1)])
    assert len(read_completions(tmp_path / "r.json", ROLE)) == 2
