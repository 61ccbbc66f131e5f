"""Evaluation reports with figures that a reader can check by hand."""

from __future__ import annotations

from haiku import HaikuRole, haiku, haiku_concept
from po_distill.records import CandidateResult, Completion, EvaluationReport, GenerationSettings, Usage
from po_distill.reporting.acceptance import judge
from po_distill.reporting.figures import candidate_result

ROLE = HaikuRole()
CASES = [haiku_concept(number, "autumn" if number >= 4 else "spring") for number in range(7)]


def completions(model: str, answers: dict[int, str], *, seconds: float, stand_in: bool = False) -> list[Completion]:
    """Sound answers, but for those given by case number."""
    found = []
    for number, case in enumerate(CASES):
        text = answers.get(number, haiku(case.planted_label or "spring"))
        found.append(
            Completion(
                concept=case,
                text=text,
                model=model,
                provider="p",
                contract_digest=ROLE.contract.digest,
                usage=Usage(latency_s=seconds * (1 + number), completion_tokens=20),
                score=ROLE.score(case, text),
                stand_in=stand_in,
                finish="length" if number == 2 else "stop",
            )
        )
    return found


def example_completions() -> dict[str, list[Completion]]:
    return {
        "base": completions("tiny.gguf", dict.fromkeys(range(6), "no fence"), seconds=0.5),
        "student": completions(
            "po-student-v1.gguf", {1: haiku("autumn"), 2: haiku("spring", lines=1), 5: "no: [yaml"}, seconds=0.004
        ),
        "teacher": completions("rules", {}, seconds=12.0, stand_in=True),
    }


def report_of(given: dict[str, list[Completion]], **more) -> EvaluationReport:
    results: dict[str, CandidateResult] = {name: candidate_result(name, found) for name, found in given.items()}
    values = {
        "role": "haiku",
        "contract": ROLE.contract,
        "cases": len(CASES),
        "labels": {"autumn": 3, "spring": 4},
        "candidates": tuple(results.values()),
        "verdict": judge(results),
        "generation": GenerationSettings(temperature=0.0, max_tokens=512),
        "created_at": "2026-11-23T10:00:00+00:00",
        "artifacts": {"GGUF": "artifacts/models/haiku_student_v1/haiku-student-v1.Q4_0.gguf"},
    }
    return EvaluationReport(**{**values, **more})


HOSTILE = (
    "<script>alert(1)</script> | **b** `c` [x](javascript:y) https://evil.example www.evil.example &amp; \n# h\x1b[31m"
)


def hostile() -> tuple[EvaluationReport, dict[str, list[Completion]]]:
    """A report in which everything that other people wrote is an attack on the reader."""
    given = example_completions()
    case = given["student"][0]
    concept = case.concept.model_copy(
        update={"concept_id": HOSTILE, "concept": HOSTILE, "requirements_yaml": HOSTILE, "planted_label": "</td>spring"}
    )
    violation = (
        ROLE.score(case.concept, "no: [yaml")
        .violations[0]
        .model_copy(update={"kind": "kind<img src=x onerror=y>|", "detail": HOSTILE})
    )
    score = case.score.model_copy(update={"violations": (violation,), "valid": False})
    given["student"][0] = case.model_copy(
        update={"concept": concept, "text": HOSTILE, "model": HOSTILE, "finish": HOSTILE, "score": score}
    )
    return report_of(given, artifacts={HOSTILE: HOSTILE}, labels={HOSTILE: 7}), given
