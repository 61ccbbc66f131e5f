"""A dataset in DSPy's form: prompts with answered rows of the train split, and never of a held-out one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from po_distill.artifacts import read_jsonl
from po_distill.errors import MissingExtraError
from po_distill.records import Completion
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.dataset_builder import DatasetBuilder
from po_distill.stages.dataset_doctor import DatasetDoctor

pytest.importorskip("dspy")
ROLE = ProductOwnerRole()


def completions(count: int = 80, seed: int = 7) -> list[Completion]:
    return [
        Completion(
            concept=concept,
            text=ROLE.answer_by_rules(concept),
            model="rules",
            provider="offline",
            contract_digest=ROLE.contract.digest,
            created_at="2026-11-01T00:00:00Z",
        )
        for concept in ROLE.generate_concepts(count, seed)
    ]


def built(folder: Path, **settings: object):
    settings = {"contracts": {"fenced": 0.5, "dspy": 0.5}, "test_share": 0.2, "workers": 1, **settings}
    return DatasetBuilder(**settings).build(completions(), folder / "rows.jsonl")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return built(tmp_path_factory.mktemp("mixed"), demonstrated_characters=12_000)


def rows(dataset, split="train"):
    return [row for _, row in read_jsonl(dataset.paths[split])]


def shown_in(row) -> list[str]:
    return [turn["content"] for turn in row["prompt"] if turn["role"] == "assistant"]


def is_dspys(row) -> bool:
    return "[[ ## completed ## ]]" in row["completion"][0]["content"]


def test_both_contracts_have_their_share_and_every_row_is_of_one(dataset):
    assert set(dataset.contracts) == {"fenced", "dspy"}
    assert all(is_dspys(row) == ("[[ ## concept ## ]]" in row["prompt"][-1]["content"]) for row in rows(dataset))
    assert not any(shown_in(row) for row in rows(dataset) if not is_dspys(row))


def test_prompts_show_no_row_to_two_of_the_train_split_and_never_themselves(dataset):
    targets = {row["completion"][0]["content"]: row["concept"]["concept_id"] for row in rows(dataset)}
    counts = set()
    for row in filter(is_dspys, rows(dataset)):
        counts.add(len(shown_in(row)))
        assert {targets[text] for text in shown_in(row)} <= set(targets.values()) - {row["concept"]["concept_id"]}
    assert counts == {0, 1, 2}


def test_held_out_rows_show_nothing(dataset):
    assert any(map(is_dspys, rows(dataset, "test")))
    assert not any(shown_in(row) for row in rows(dataset, "test"))


def test_half_of_the_prompts_have_the_roles_own_instructions_and_the_others_vary(dataset):
    systems = [row["prompt"][0]["content"] for row in rows(dataset) if is_dspys(row)]
    own = ProductOwnerRole("dspy").contract.system
    assert 0.25 < systems.count(own) / len(systems) < 0.75
    assert len(set(systems)) >= 4


def test_no_row_with_demonstrations_passes_the_limit(tmp_path):
    small = built(tmp_path, demonstrated_characters=6_000)
    sizes = [
        sum(len(turn["content"]) for turn in (*row["prompt"], *row["completion"]))
        for row in rows(small)
        if shown_in(row)
    ]
    assert sizes
    assert max(sizes) <= 6_000


def test_a_second_build_gives_the_same_bytes(dataset, tmp_path):
    assert built(tmp_path, demonstrated_characters=12_000).digest == dataset.digest


def test_the_doctor_knows_prompts_with_demonstrations_for_the_roles_own(dataset, tmp_path):
    checkup = DatasetDoctor(workers=1).check(dataset.paths["train"])
    assert checkup.fit
    assert checkup.foreign_prompts == 0
    content = next(row for row in rows(dataset) if shown_in(row))
    content["prompt"][-1]["content"] += " Now."
    (tmp_path / "odd.jsonl").write_text(json.dumps(content) + "\n")
    assert DatasetDoctor(workers=1).check(tmp_path / "odd.jsonl").foreign_prompts == 1


_WITHOUT_DSPY = """
import sys, pytest
sys.modules["dspy"] = None
pytest.importorskip = lambda name: None
sys.path.insert(0, sys.argv[2])
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.dataset_builder import DatasetBuilder
from po_distill.stages.dataset_doctor import DatasetDoctor
from po_distill.errors import MissingExtraError
from test_demonstrations import completions
built = DatasetBuilder(contracts={"fenced": 0.5, "json": 0.5}, workers=1).build(completions(6), sys.argv[1])
assert DatasetDoctor(workers=1).check(built.paths["train"]).rows
try:
    DatasetBuilder(contracts={"fenced": 0.5, "dspy": 0.5}, workers=1).build(completions(6), sys.argv[1])
except MissingExtraError as error:
    print(error)
"""


def test_without_dspy_its_contract_names_the_extra_and_the_others_work(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT_DSPY, str(tmp_path / "rows.jsonl"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "po-distill[dspy]" in result.stdout


def test_a_role_under_dspys_contract_cannot_be_opened_without_it(monkeypatch):
    from po_distill.roles.product_owner import program_prompt

    program_prompt.contract.cache_clear()
    monkeypatch.setitem(sys.modules, "dspy", None)
    with pytest.raises(MissingExtraError):
        ProductOwnerRole("dspy")
