"""What spoils a training run without a word elsewhere: each is refused, or has no effect here."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch
from transformers import AutoTokenizer

from po_distill.artifacts import digest_bytes, read_record, write_json, write_jsonl
from po_distill.errors import ArtifactError, InputError, MissingExtraError, TrainingError
from po_distill.records import Adapter, LoRASettings, TrainingJob
from po_distill.weights import answer_trainer, lora_training, training_checks
from po_distill.weights.packed_rows import pack
from po_distill.weights.tokenization import IGNORED, TokenizedRow, tokenize_file
from po_distill.weights.training_checks import check_batch
from tiny_models import CHATML, tiny_model
from training_jobs import events, stop_at, tiny_job, train_here, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def rows(base: Path, tmp_path: Path) -> list[TokenizedRow]:
    return tokenize_file(write_rows(tmp_path / "r.jsonl", rows=3), AutoTokenizer.from_pretrained(base), max_seq_len=256)


def test_a_padding_token_that_is_the_end_token_does_not_take_the_end_from_the_loss(
    base: Path, rows: list[TokenizedRow]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = pack(rows)
    check_batch(batch, tokenizer.eos_token_id)
    # What a collator does that masks padding by its id:
    batch["labels"][batch["labels"] == tokenizer.pad_token_id] = IGNORED
    with pytest.raises(TrainingError, match="under the loss"):
        check_batch(batch, tokenizer.eos_token_id)


def test_a_batch_with_the_prompt_under_the_loss_or_a_cut_answer_is_refused(
    base: Path, rows: list[TokenizedRow]
) -> None:
    eos = AutoTokenizer.from_pretrained(base).eos_token_id
    batch = pack(rows)
    part = batch["packing"].parts()[1].start
    batch["labels"][0, part] = batch["input_ids"][0, part + 1]
    with pytest.raises(TrainingError, match=r"lines 2, tokens of the prompt are under the loss"):
        check_batch(batch, eos)
    cut = [replace(row, input_ids=row.input_ids[:-3]) for row in rows]
    with pytest.raises(TrainingError, match="line 1 does not end with the end token"):
        check_batch(pack(cut), eos)
    with pytest.raises(TrainingError, match="shared beginning of the prompts is under the loss"):
        whole = pack(rows)
        whole["labels"][0, 0] = 1
        check_batch(whole, eos)


def test_the_first_batch_of_a_run_is_looked_at_before_the_first_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def masked(packed_rows: list[TokenizedRow]) -> dict[str, object]:
        batch = pack(packed_rows)
        batch["labels"][batch["labels"] == 2] = IGNORED
        return batch

    job = tiny_job(tmp_path, base)
    monkeypatch.setattr(answer_trainer, "pack", masked)
    with pytest.raises(TrainingError, match="under the loss"):
        train_here(job)
    assert events(job.log_path or "", "step") == []


def test_rows_that_another_template_has_rendered_already_are_refused(base: Path, tmp_path: Path) -> None:
    for text in ("[INST] Name a product. [/INST]", "<|im_start|>user\nName a product.<|im_end|>"):
        path = tmp_path / "rendered.jsonl"
        write_jsonl(path, [{"prompt": text, "response": "A vision."}])
        with pytest.raises(InputError, match=r"line 1: the text holds '.*', which only a chat template may write"):
            train_here(tiny_job(tmp_path, base, data_path=str(path)))


def test_a_chat_template_that_is_not_the_registered_models_is_refused(base: Path) -> None:
    from po_distill.base_models import MISTRAL_7B_INSTRUCT, SMOLLM2_135M_INSTRUCT

    tokenizer = AutoTokenizer.from_pretrained(base)
    digest = training_checks.check_template(tokenizer, SMOLLM2_135M_INSTRUCT)
    assert digest.startswith("sha256:")
    with pytest.raises(TrainingError, match=r"ends an answer with '<\|im_end\|>'; mistral-7b-instruct ends it with"):
        training_checks.check_template(tokenizer, MISTRAL_7B_INSTRUCT)


def test_a_run_does_not_go_on_under_another_chat_template(base: Path, tmp_path: Path) -> None:
    own = tmp_path / "base"
    shutil.copytree(base, own)
    job = tiny_job(tmp_path, own, max_steps=10, save_every=2)
    stop_at(job, 5)
    changed = CHATML.replace("message['role'] + '\n'", "message['role'] + ':'").replace("assistant\n", "assistant:")
    (own / "chat_template.jinja").write_text(changed)
    adapter = train_here(job)
    assert adapter is not None
    assert events(job.log_path or "", "resume") == []  # it began again


def test_a_run_does_not_go_on_upon_another_base_of_the_same_name(base: Path, tmp_path: Path) -> None:
    own = tmp_path / "base"
    shutil.copytree(base, own)
    job = tiny_job(tmp_path, own, max_steps=10, save_every=2)
    stop_at(job, 5)
    shutil.rmtree(own)
    tiny_model(own, initializer_range=0.1)
    with pytest.raises(TrainingError, match="began on a base model of the digest"):
        train_here(job)
    assert list(Path(job.work_path).glob("checkpoints/*/complete.json"))  # nothing was thrown away


def test_an_adapter_that_did_not_change_is_not_kept(base: Path, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, base, learning_rate=1e-60)
    with pytest.raises(TrainingError, match="did not change the adapter"):
        train_here(job)
    assert not Path(job.output_path).exists()


def test_a_loss_that_is_no_number_names_the_rows(base: Path, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, base, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"The loss is (nan|inf) at step \d of 6, on the rows in lines \d+, \d+, "):
        train_here(job)
    assert not Path(job.output_path).exists()


def test_a_full_disk_at_a_checkpoint_stops_the_run_and_the_one_before_is_gone_on_from(
    base: Path, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    job = tiny_job(tmp_path, base, save_every=2)
    full = Path(job.work_path) / "checkpoints/checkpoint-4/optimizer.pt"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="A checkpoint cannot be written to"):
        train_here(job)
    full.unlink()
    assert train_here(job) is not None
    assert [entry["step"] for entry in events(job.log_path or "", "resume")] == [2]


def test_too_little_room_on_the_disk_is_known_before_the_first_step_and_before_a_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    job = tiny_job(tmp_path, base, save_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(training_checks.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(ArtifactError, match="no room for checkpoints and adapter"):
            train_here(job)
    free = iter([usage.free, usage.free, 1000])  # the plan, the first checkpoint, the second
    monkeypatch.setattr(training_checks.shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    with pytest.raises(ArtifactError, match="no room for the next checkpoint"):
        train_here(job)
    assert [entry["step"] for entry in events(job.log_path or "", "checkpoint")] == [2]


def test_a_row_that_is_longer_than_the_base_was_made_for_is_refused(base: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "long.jsonl", rows=2, words=150)
    job = tiny_job(tmp_path, base, data_path=str(path), max_seq_len=4096)
    with pytest.raises(InputError, match=r"2 rows are longer than the 512 tokens that .* was made for: lines 1, 2"):
        train_here(job)


def test_what_this_machine_cannot_do_is_said_before_the_base_is_loaded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="no CUDA GPU here"):
            train_here(tiny_job(tmp_path, base, quantize_base="nf4"))
    with pytest.raises(TrainingError, match="has no linear layers named c_attn"):
        train_here(tiny_job(tmp_path, base, lora=LoRASettings(target_modules=("c_attn",))))
    from po_distill.weights import student_model

    monkeypatch.setattr(student_model, "free_memory", lambda: 1000)
    with pytest.raises(TrainingError, match=r"needs .* \(base .*\) with a row at a time") as caught:
        train_here(tiny_job(tmp_path, base))
    assert "smaller base model" in caught.value.fix
    job = tiny_job(tmp_path, base, quantize_base="nf4")
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        monkeypatch.setattr(training_checks.importlib.util, "find_spec", lambda name: None)
        training_checks.check_quantized_base(job, on_gpu=True)


@pytest.mark.parametrize(
    ("raised", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "the GPU"),
        (MemoryError(), "this machine"),
    ],
)
def test_memory_that_runs_out_is_told_with_whose_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, place: str
) -> None:
    def run_out(job: TrainingJob, *, started_s: float) -> Adapter | None:
        raise raised

    job = tiny_job(tmp_path, tmp_path)
    write_json(tmp_path / "job.json", job)
    monkeypatch.setattr(lora_training, "train", run_out)
    assert lora_training.main([str(tmp_path / "job.json")]) == 1
    failure = read_record(Path(job.work_path) / lora_training.FAILURE_NAME, lora_training.TrainingFailure)
    assert failure.problem.startswith(f"The memory of {place} is not enough to train")


def test_a_prompt_contract_and_the_chat_template_travel_with_the_adapter(base: Path, tmp_path: Path) -> None:
    from po_distill.plugins import load

    contract = load("roles", "product_owner")().contract
    adapter = train_here(tiny_job(tmp_path, base, contract=contract, max_steps=1))
    assert adapter is not None and adapter.contract == contract
    folder = Path(adapter.path)
    assert (folder / "chat_template.jinja").read_text() == (base / "chat_template.jinja").read_text()
    assert read_record(folder / "po_distill.json", Adapter) == adapter
    assert adapter.chat_template == digest_bytes((base / "chat_template.jinja").read_bytes())
