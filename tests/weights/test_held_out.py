"""Held-out rows in the middle of a run: their loss, answers to them, and which weights are kept."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from po_distill.artifacts import digest_file, write_jsonl
from po_distill.errors import InputError
from po_distill.plugins import load
from po_distill.records import Score
from po_distill.weights.held_out_answers import AnswerJudge, generate, make_judge
from po_distill.weights.held_out_loss import HeldOut
from po_distill.weights.packed_rows import pack
from po_distill.weights.student_model import load_student
from po_distill.weights.tokenization import tokenize_file
from tiny_models import tiny_model
from training_jobs import SMALL, events, plan_of, stop_at, tiny_job, train_here, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base")


def test_the_held_out_loss_is_that_of_the_adapter_in_plain_peft(base: Path, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "held_out.jsonl", rows=3, words=4, first=90)
    job = tiny_job(tmp_path, base, validation_path=str(held_out), evaluate_every=4)
    adapter = train_here(job)
    assert adapter is not None and adapter.training is not None
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter.path)
    total, tokens = 0.0, 0
    for row in tokenize_file(held_out, AutoTokenizer.from_pretrained(base), max_seq_len=256):
        logits = plain(input_ids=torch.tensor([row.input_ids])).logits[0, row.prompt_tokens - 1 : -1]
        answer = torch.tensor(row.input_ids[row.prompt_tokens :])
        total += torch.nn.functional.cross_entropy(logits, answer, reduction="sum").item()
        tokens += row.answer_tokens
    assert adapter.training.heldout_loss == pytest.approx(total / tokens, rel=1e-4)
    measured = events(job.log_path or "", "held_out")
    assert [entry["step"] for entry in measured] == [4, 6]
    assert measured[1]["loss"] < measured[0]["loss"]
    assert plan_of(job).heldout_rows == 3


def scripted(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    left = iter(losses)
    monkeypatch.setattr(HeldOut, "measure", lambda self, student: {"loss": next(left)})


def test_the_weights_of_the_best_step_are_the_adapter_and_the_last_ones_lie_beside(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 3.0, 1.0, 2.0)
    held_out = write_rows(tmp_path / "held_out.jsonl", rows=2, first=90)
    job = tiny_job(tmp_path, base, validation_path=str(held_out), evaluate_every=2)
    adapter = train_here(job)
    assert adapter is not None and adapter.training is not None
    run = adapter.training
    assert (run.step, run.steps, run.heldout_loss, run.heldout_loss_last) == (4, 6, 1.0, 2.0)
    folder = Path(adapter.path)
    best = load_file(Path(job.work_path) / "checkpoints/checkpoint-4/adapter_model.safetensors")
    kept, last = (load_file(place / "adapter_model.safetensors") for place in (folder, folder / "last"))
    assert all(torch.equal(kept[name], weight) for name, weight in best.items())
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    assert adapter.digest == digest_file(folder / "adapter_model.safetensors")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "last")


def test_a_run_that_gets_no_better_stops_where_patience_ends(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 1.0, 2.0, 3.0)
    held_out = write_rows(tmp_path / "held_out.jsonl", rows=2, first=90)
    job = tiny_job(tmp_path, base, validation_path=str(held_out), evaluate_every=1, patience=2)
    adapter = train_here(job)
    assert adapter is not None and adapter.training is not None
    assert (adapter.training.steps, adapter.training.step, adapter.training.stopped_early) == (3, 1, True)
    assert events(job.log_path or "", "end")[0]["stopped_early"] is True


def test_patience_that_is_used_up_stays_so_when_a_run_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 1.0, 2.0, 3.0)
    held_out = write_rows(tmp_path / "held_out.jsonl", rows=2, first=90)
    job = tiny_job(
        tmp_path, base, validation_path=str(held_out), evaluate_every=1, save_every=1, patience=2, max_steps=12
    )
    stop_at(job, 2)
    adapter = train_here(job)
    assert adapter is not None and adapter.training is not None
    assert (adapter.training.steps, adapter.training.step) == (3, 1)


def test_answers_are_those_of_plain_generation_and_the_student_trains_on_afterwards(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = tokenize_file(write_rows(tmp_path / "r.jsonl", rows=2), tokenizer, max_seq_len=256)
    student = load_student(base, SMALL, "float32", seed=1)
    before = student(**pack(rows)).item()
    prompts = [row.input_ids[: row.prompt_tokens] for row in (rows[0], rows[1])]
    prompts[1] = prompts[1] + rows[1].input_ids[rows[1].prompt_tokens :][:3]  # another length
    student.eval()
    found = generate(student, tokenizer, prompts, 12)
    student.train()
    plain = AutoModelForCausalLM.from_pretrained(base)
    for prompt, text in zip(prompts, found, strict=True):
        answer = plain.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        assert text == tokenizer.decode(answer, skip_special_tokens=True)
    loss = student(**pack(rows))
    assert loss.item() == pytest.approx(before, rel=1e-6)
    loss.backward()


def test_an_answer_that_cannot_be_read_counts_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"good": (0.8, True), "bad": (0.9, False)}
    role = SimpleNamespace(
        score=lambda concept, text: Score(value=scores[text][0], parts={}, violations=(), valid=scores[text][1])
    )
    monkeypatch.setattr("po_distill.weights.held_out_answers.generate", lambda *_: ["good", "bad"])
    judge = AnswerJudge(role, None, [(1,), (2,)], [None, None], 5)  # type: ignore[arg-type, list-item]
    assert judge.judge(None) == {"valid_share": 0.5, "score": 0.4}


def test_cases_are_answered_and_scored_by_the_role_of_the_contract(base: Path, tmp_path: Path) -> None:
    role = load("roles", "product_owner")()
    concepts = role.generate_concepts(3, 1)
    rows = [
        {
            "example_id": str(n),
            "prompt": [{"role": "user", "content": f"Name product {n}."}],
            "completion": [{"role": "assistant", "content": "The product vision."}],
            "concept": concept.model_dump(mode="json"),
        }
        for n, concept in enumerate(concepts)
    ]
    path = tmp_path / "held_out.jsonl"
    write_jsonl(path, rows)
    job = tiny_job(
        tmp_path,
        base,
        validation_path=str(path),
        evaluate_every=6,
        generate_cases=2,
        contract=role.contract,
    )
    assert train_here(job) is not None
    (measured,) = events(job.log_path or "", "held_out")
    assert measured["valid_share"] == measured["score"] == 0
    assert plan_of(job).generate_cases == 2
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenized = tokenize_file(path, tokenizer, max_seq_len=256)
    with pytest.raises(InputError, match="without a prompt contract"):
        make_judge(path, tokenized, 2, None, tokenizer)
    plain = write_rows(tmp_path / "plain.jsonl", rows=2)
    with pytest.raises(InputError, match="rows without a concept cannot be scored"):
        make_judge(plain, tokenize_file(plain, tokenizer, max_seq_len=256), 2, role.contract, tokenizer)
