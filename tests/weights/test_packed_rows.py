import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from po_distill.records import LoRASettings
from po_distill.weights.lean_layers import answer_loss
from po_distill.weights.packed_rows import pack
from po_distill.weights.student_model import load_student
from po_distill.weights.tokenization import TokenizedRow, tokenize_file
from tiny_models import tiny_model

MODULES = LoRASettings().target_modules


def rows_of(base: Path, folder: Path, count: int = 3) -> list[TokenizedRow]:
    path = folder / "rows.jsonl"
    system = {"role": "system", "content": "Keep the product vision true to the concept."}
    with path.open("w") as file:
        for number in range(count):
            prompt = [system, {"role": "user", "content": "Which users? " * (number + 1)}]
            answer = [{"role": "assistant", "content": "Teams that plan. " * (2 * number + 1)}]
            file.write(json.dumps({"example_id": str(number), "prompt": prompt, "completion": answer}) + "\n")
    return tokenize_file(path, AutoTokenizer.from_pretrained(base), max_seq_len=512)


def plain_gradients(base: Path, rows: list[TokenizedRow]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients by transformers' and peft's own layers, a row at a time."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(MODULES)))
    fill(model)
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, row.prompt_tokens - 1 : -1]
        loss = torch.nn.functional.cross_entropy(
            logits, torch.tensor(row.input_ids[row.prompt_tokens :]), reduction="sum"
        )
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def fill(model: Any) -> None:
    """The same adapter in any model."""
    generator = torch.Generator().manual_seed(5)
    for _, weight in sorted((n, w) for n, w in model.named_parameters() if w.requires_grad):
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_loss_and_gradients_of_a_pack_are_those_of_its_rows(family: str, tmp_path: Path) -> None:
    split = "qwen2" if family == "qwen2" else "smollm"
    base = tiny_model(tmp_path / "base", family, split)
    rows = rows_of(base, tmp_path)
    expected_loss, expected = plain_gradients(base, rows)
    student = load_student(base, LoRASettings(rank=4, alpha=8, dropout=0.0), "float32", seed=1)
    fill(student)
    packed = pack(rows)
    assert packed["packing"].shared > 10
    assert packed["input_ids"].shape[1] < sum(len(row.input_ids) for row in rows)
    loss = student(**packed)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    found = gradients(student)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_row_alone_shares_nothing_and_is_padded_with_nothing(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    (row, *_) = rows_of(base, tmp_path)
    packed = pack([row])
    assert packed["packing"].shared == 0
    assert packed["input_ids"].tolist() == [list(row.input_ids)]
    assert packed["labels"][0, row.prompt_tokens - 1 : -1].tolist() == list(row.input_ids[row.prompt_tokens :])


def test_dropout_leaves_the_expected_output_and_changes_each_call(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    student = load_student(base, LoRASettings(rank=4, alpha=8, dropout=0.5), "float32", seed=1)
    fill(student)
    packed = pack(rows_of(base, tmp_path))
    assert student(**packed).item() != student(**packed).item()
    student.eval()
    assert student(**packed).item() == student(**packed).item()


@pytest.mark.parametrize("p", [0.05, 0.3, 0.999999])
def test_dropout_drops_its_share_alike_in_rows_and_columns(tmp_path: Path, p: float) -> None:
    base = tiny_model(tmp_path / "base")
    lora = LoRASettings(rank=8, alpha=8, dropout=p, target_modules=("q_proj",))
    student = load_student(base, lora, "float32", seed=1)
    layer = student.get_base_model().model.layers[0].self_attn.q_proj
    width = layer.in_features
    with torch.no_grad():  # such that the layer's output is its input after dropout, behind the frozen product
        layer.get_base_layer().weight.zero_()
        layer.lora_A["default"].weight.copy_(torch.eye(8, width))
        layer.lora_B["default"].weight.copy_(torch.eye(layer.out_features, 8))
        kept = layer(torch.ones(4001, width))[:, :8] * (1 - p)
    dropped = kept == 0
    torch.testing.assert_close(kept[~dropped], torch.ones_like(kept[~dropped]))
    spread = (p * (1 - p)) ** 0.5
    assert abs(dropped.double().mean() - p) < 5 * spread / dropped.numel() ** 0.5 + 2**-16
    if p < 0.9:
        assert dropped.double().mean(0).std() < 3 * spread / 4001**0.5
        assert dropped.double().mean(1).std() == pytest.approx(spread / 8**0.5, rel=0.1)


def test_layers_that_are_computed_twice_give_the_same_gradients(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    packed = pack(rows_of(base, tmp_path))
    found = []
    for twice in (False, True):
        student = load_student(
            base, LoRASettings(rank=4, alpha=8, dropout=0.3), "float32", seed=1, checkpoint_activations=twice
        )
        fill(student)
        torch.manual_seed(11)  # of the dropout masks, which have to come out the same a second time
        student(**packed).backward()
        found.append(gradients(student))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_the_layers_make_nothing_on_another_device_than_their_own(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    rows = rows_of(base, tmp_path)
    student = load_student(base, LoRASettings(rank=4, alpha=8, dropout=0.3), "float32", seed=1).to("meta")
    batch = pack(rows)
    model = student.get_base_model()
    ids, positions = batch["input_ids"].to("meta"), batch["position_ids"].to("meta")
    states = model.base_model(input_ids=ids, position_ids=positions, packing=batch["packing"], use_cache=False)
    hidden = states.last_hidden_state[0, -20:]
    answer_loss(hidden, model.lm_head.weight, torch.zeros(20, dtype=torch.long, device="meta")).backward()
    assert all(gradient.device.type == "meta" for gradient in gradients(student).values())


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_other_kinds_of_lora_compute_what_peft_computes(kind: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    rows = rows_of(base, tmp_path)
    student = load_student(base, LoRASettings(rank=4, alpha=8, dropout=0.0, **{kind: True}), "float32", seed=1)
    fill(student)
    loss = student(**pack(rows))
    loss.backward()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(MODULES), **{f"use_{kind}": True}))
    fill(plain)
    expected = 0.0
    for row in rows:
        logits = plain(input_ids=torch.tensor([row.input_ids])).logits[0, row.prompt_tokens - 1 : -1]
        answer = torch.tensor(row.input_ids[row.prompt_tokens :])
        part = torch.nn.functional.cross_entropy(logits, answer, reduction="sum")
        part.backward()
        expected += part.item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    found = gradients(student)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-3)


def test_a_base_in_4_bits_gives_the_adapter_float32_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny_model(tmp_path / "base", hidden_size=128, intermediate_size=256)
    rows = rows_of(base, tmp_path)
    lora = LoRASettings(rank=4, alpha=8, dropout=0.0)
    if not torch.cuda.is_available():  # bitsandbytes computes on a processor too, if slowly
        monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    student = load_student(base, lora, "bfloat16", seed=1, nf4=True)
    loss = student(**{k: v.to(student.device) if hasattr(v, "to") else v for k, v in pack(rows).items()})
    loss.backward()
    assert loss.item() == pytest.approx(load_student(base, lora, "bfloat16", seed=1)(**pack(rows)).item(), rel=0.2)
    assert {gradient.dtype for gradient in gradients(student).values()} == {torch.float32}
