"""Checkups with the figures of a real attempt, a sound one, and one in which every word is an attack."""

from __future__ import annotations

from typing import Any

from po_distill.records import (
    Checkup,
    Dataset,
    DatasetChange,
    InputFile,
    Lengths,
    NotedScore,
    PromptContract,
    RowFact,
    RuleFinding,
)

CONTRACT = PromptContract(
    role="product_owner",
    name="fenced",
    system="You are the Product Owner.\nAnswer with two blocks:\n```yaml VISION\n...\n```\n",
    template="CONCEPT:\n{concept}\n\nREQUIREMENTS:\n{requirements_yaml}",
    output_format="2",
)
PATH = "data/po_teacher_supervised.jsonl"
HOSTILE = (
    "<script>alert(1)</script> | **b** `c` [x](javascript:y) https://evil.example $a$ &amp; \n---\n# h\x1b[31m\ud800"
)


def digest(character: str) -> str:
    return "sha256:" + character * 64


def unfit(**more: Any) -> Checkup:
    """What the doctor finds in one team's training data (its field report has the figures)."""
    scores = [0] * 20
    scores[12:20] = [2, 5, 3, 0, 19, 116, 163, 51]
    low = (0.64375, 0.64375, 0.66875, 0.66875, 0.66875, 0.69375, 0.69375, 0.71875, 0.71875, 0.71875)
    lines = (67, 155, 172, 249, 261, 55, 283, 321, 327, 335)
    values: dict[str, Any] = {
        "path": PATH,
        "digest": digest("a"),
        "role": "product_owner",
        "contract": CONTRACT,
        "rows": 359,
        "accepted": 205,
        "left": 113,
        "rejected": {
            "score_below_minimum": 4,
            "status_outside_enum": 10,
            "too_few_actions": 113,
            "unknown_requirement_id": 15,
            "verdict_contradicts_lists": 12,
        },
        "violations": {
            "too_few_actions": 118,
            "unknown_requirement_id": 25,
            "verdict_contradicts_lists": 25,
            "status_outside_enum": 10,
            "wrong_type": 7,
        },
        "distinct_prompts": 177,
        "repeated_prompts": 108,
        "exact_duplicate_rows": 2,
        "contradictory_prompts": 51,
        "near_duplicate_rows": 143,
        "leaked_rows": 48,
        "leaked_exact": 46,
        "leaked_normalised": 0,
        "leaked_near": 2,
        "foreign_prompts": 359,
        "not_canonical": 205,
        "labels": {"aligned": 240, "needs_adjustment": 109, "misaligned": 0, "conflicts": 10},
        "accepted_labels": {"aligned": 131, "needs_adjustment": 74, "misaligned": 0},
        "tiers": {"medium": 359},
        "languages": {"en": 359},
        "contracts": {"fenced": 359},
        "parts": 1521,
        "distinct_parts": 73,
        "facts": (
            RowFact(name="alignment_items", count=2744, rendered=1611),
            RowFact(name="alignment_items_as_mappings", count=1729, rendered=0),
            RowFact(name="timestamps_that_fail_the_metric", count=357, rendered=0),
        ),
        "values": {"last_updated": {"2023-10-27": 244, "2024-05-16": 38, "2024-07-29": 22, "2024-05-15": 9}},
        "score_mean": 0.9001547,
        "scores": tuple(scores),
        "lowest": tuple(
            NotedScore(where=f"{PATH}, line {line}", score=score, reason="status_outside_enum")
            for line, score in zip(lines, low, strict=True)
        ),
        "stored_scores": 359,
        "stored_wrong": 10,
        "stored_worst": 0.25625,
        "lengths": Lengths(
            base="mistral-7b-instruct",
            rows=359,
            shortest=742,
            median=1098,
            p95=1290,
            longest=1432,
            cut={512: 359, 768: 355, 1024: 260, 1536: 0, 2048: 0, 4096: 0},
            histogram={
                704: 4,
                768: 11,
                832: 20,
                896: 29,
                960: 35,
                1024: 66,
                1088: 78,
                1152: 60,
                1216: 38,
                1280: 14,
                1408: 4,
            },
        ),
        "target": 600,
        "missing": {"aligned": 136, "misaligned": 200, "needs_adjustment": 151},
        "missing_command": f"po-distill dataset {PATH} --target 600 --mix aligned=1,misaligned=2,needs_adjustment=1 "
        "--budget-usd 5 --output artifacts/distillation/po_teacher_dataset.jsonl",
        "held_out": (InputFile(path="data/validation.jsonl", digest=digest("b"), rows=34),),
        "rules": (
            RuleFinding(rule="readable_rows", rows=0, detail="kept", fix=""),
            RuleFinding(rule="cut_rows", rows=0, detail="kept", fix=""),
            RuleFinding(
                rule="rare_class",
                rows=1,
                detail="misaligned: 0 of 205 rows (0.0 %; at least 10 %). A student trained on this never objects.",
                fix="Get the missing classes from a teacher, as the target below says.",
                where=("misaligned",),
            ),
            RuleFinding(
                rule="leaked_rows",
                rows=48,
                detail="26 of 34 held-out concepts are in the data, in 48 rows.",
                fix="Build with --held-out data/validation.jsonl: the builder leaves these rows out.",
                where=tuple(f"{PATH}, line {line}" for line in (4, 9, 17, 18, 23, 40, 41)),
            ),
            RuleFinding(
                rule="contradictory_prompts",
                rows=51,
                detail="51 prompts have answers of different classes.",
                fix="Build: the best-scored answer of each prompt stays.",
                where=(f"{PATH}, line 2", f"{PATH}, line 8"),
                allowed=True,
            ),
        ),
        "fit": False,
        "duration_s": 4.21,
    }
    return Checkup(**{**values, **more})


def sound(**more: Any) -> Checkup:
    """A checkup in which everything is well and little is to be said."""
    scores = [0] * 20
    scores[19] = 300
    values: dict[str, Any] = {
        "path": "po.jsonl",
        "rows": 300,
        "accepted": 300,
        "left": 300,
        "rejected": {},
        "violations": {},
        "distinct_prompts": 300,
        "labels": {"aligned": 100, "misaligned": 100, "needs_adjustment": 100},
        "accepted_labels": {"aligned": 100, "misaligned": 100, "needs_adjustment": 100},
        "tiers": {},
        "languages": {},
        "contracts": {},
        "parts": 0,
        "distinct_parts": 0,
        "facts": (),
        "values": {},
        "score_mean": 0.99,
        "scores": tuple(scores),
        "lowest": (),
        "stored_worst": 0.0,
        "lengths": None,
        "lengths_missing": "mistral-7b-instruct has no tokenizer on this machine.",
        "target": None,
        "missing": {},
        "missing_command": None,
        "held_out": (),
        "rules": tuple(rule.model_copy(update={"rows": 0}) for rule in unfit().rules),
        "fit": True,
        **dict.fromkeys(
            [
                "repeated_prompts",
                "exact_duplicate_rows",
                "contradictory_prompts",
                "near_duplicate_rows",
                "leaked_rows",
                "leaked_exact",
                "leaked_normalised",
                "leaked_near",
                "foreign_prompts",
                "not_canonical",
                "stored_scores",
                "stored_wrong",
            ],
            0,
        ),
    }
    return unfit(**{**values, **more})


def hostile() -> Checkup:
    """A checkup of a file whose every word is an attack on the reader."""
    found = unfit()
    return unfit(
        path=HOSTILE,
        role=HOSTILE,
        rejected={HOSTILE: 154},
        violations={HOSTILE: 154},
        labels={HOSTILE: 359},
        accepted_labels={HOSTILE: 2},
        tiers={HOSTILE: 359},
        languages={HOSTILE: 359},
        contracts={HOSTILE: 359},
        facts=(RowFact(name=HOSTILE, count=1),),
        values={HOSTILE: {HOSTILE: 300}},
        lowest=(NotedScore(where=HOSTILE, score=0.1, reason=HOSTILE),),
        lengths=found.lengths and found.lengths.model_copy(update={"base": HOSTILE}),
        missing={HOSTILE: 3},
        missing_command=HOSTILE,
        held_out=(InputFile(path=HOSTILE, digest=digest("c"), rows=1),),
        rules=(RuleFinding(rule=HOSTILE, rows=1, detail=HOSTILE, fix=HOSTILE, where=(HOSTILE,)),),
    )


def dataset(**more: Any) -> Dataset:
    """A dataset built of the rows of `unfit`."""
    values: dict[str, Any] = {
        "paths": {
            "train": "artifacts/po.jsonl",
            "validation": "artifacts/po.validation.jsonl",
            "test": "artifacts/po.test.jsonl",
        },
        "rejected_path": "artifacts/po.rejected.jsonl",
        "contract": CONTRACT,
        "counts": {"train": 98, "validation": 4, "test": 11},
        "labels": {"aligned": 66, "needs_adjustment": 47},
        "inputs": 359,
        "rejected": {"duplicate_prompt": 44, "leaked": 48, "too_few_actions": 113, "unknown_requirement_id": 41},
        "digest": digest("d"),
        "contracts": {"fenced": 113},
        "tiers": {"medium": 113},
        "languages": {"en": 113},
        "sources": (InputFile(path=PATH, digest=digest("a"), rows=359),),
        "held_out": (InputFile(path="data/validation.jsonl", digest=digest("b"), rows=34),),
        "settings": {"min_score": 0.85, "validation_share": 0.05, "test_share": 0.1, "mix": None},
        "missing": {"misaligned": 200, "aligned": 134, "needs_adjustment": 153},
        "also": {"messages.train": "artifacts/po.messages.jsonl", "parquet.train": "artifacts/po.parquet"},
        "po_distill": "0.1.0",
    }
    return Dataset(**{**values, **more})


def hostile_dataset() -> Dataset:
    """A dataset whose every word is an attack on the reader."""
    file = InputFile(path=HOSTILE, digest=digest("c"), rows=1)
    return dataset(
        paths={"train": f"a/{HOSTILE}", "validation": f"a/v{HOSTILE}", "test": f"a/t{HOSTILE}"},
        rejected_path=HOSTILE,
        contract=CONTRACT.model_copy(update={"system": f"````\n</details>\n---\n{HOSTILE[:-1]}"}),
        labels={HOSTILE: 113},
        rejected={HOSTILE: 246},
        contracts={HOSTILE: 113},
        tiers={HOSTILE: 113},
        languages={HOSTILE: 113},
        sources=(file,),
        held_out=(file,),
        settings={HOSTILE: [HOSTILE]},
        missing={HOSTILE: 3},
        also={HOSTILE: HOSTILE},
        po_distill=HOSTILE,
    )


def change(**more: Any) -> DatasetChange:
    """How a second version of a dataset differs from the first."""
    values: dict[str, Any] = {
        "before": "v1/po.jsonl",
        "after": "v2/po.jsonl",
        "rows_before": 113,
        "rows_after": 162,
        "kept": 100,
        "added": 50,
        "removed": 1,
        "changed": 12,
        "moved": 0,
        "labels": {"aligned": (66, 66), "misaligned": (0, 50), "needs_adjustment": (47, 46)},
        "splits": {"train": (98, 140), "validation": (4, 7), "test": (11, 15)},
        "settings": {"min_score": (0.85, 0.9)},
        "contract_changed": False,
        "examples": {"added": ("PO-7-00003", "PO-7-00009"), "removed": ("PO-7-00001",), "changed": ("PO-7-00002",)},
    }
    return DatasetChange(**{**values, **more})
