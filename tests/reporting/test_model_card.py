from pathlib import Path

import pytest
import yaml

from po_distill.plugins import load
from po_distill.records import Adapter, LoRASettings, TrainingJob, TrainingSummary
from po_distill.reporting.loss_curve import draw_loss, running_mean
from po_distill.reporting.model_card import render_model_card

DIGEST = "sha256:" + "a" * 64
HISTORY = [
    {"step": 1, "loss": 2.0, "step_s": 1.0, "tokens": 10},
    {"step": 2, "loss": 1.0, "step_s": 1.0, "tokens": 10},
    {"step": 2, "eval_loss": 1.2, "eval_valid_share": 0.5, "eval_score": 0.45},
    {"step": 3, "loss": 0.5, "step_s": 1.0, "tokens": 10},
    {"step": 3, "eval_loss": 1.4, "eval_valid_share": 0.75, "eval_score": 0.6},
]


def summary(**changes: object) -> TrainingSummary:
    values: dict[str, object] = {
        "rows": 12, "tokens": 1200, "answer_tokens": 700, "longest": 120, "steps": 3, "epochs": 1.0, "first_loss": 2.0,
        "last_loss": 0.5, "duration_s": 3.0, "step_s": 1.0, "tokens_per_s": 400.0, "step": 2, "heldout_loss": 1.2,
        "heldout_loss_last": 1.4, "precision": "bfloat16", "device": "NVIDIA A100-SXM4-40GB",
        "peak_memory_bytes": 31_000_000_000, "estimated_memory_bytes": 32_000_000_000,
    }  # fmt: skip
    return TrainingSummary(**{**values, **changes})


def card(base_license: str | None = "Apache-2.0", **changes: object) -> str:
    job = TrainingJob(
        data_path="/home/someone/rows.jsonl", base_path="/models/m", base_name="m", output_path="/home/someone/adapter",
        work_path="/home/someone/.train", lora=LoRASettings(rslora=True),
    )  # fmt: skip
    adapter = Adapter(
        path="/home/someone/adapter", base_name="m", base_digest=DIGEST, digest=DIGEST, training=summary(**changes),
        contract=load("roles", "product_owner")().contract, chat_template=DIGEST,
    )  # fmt: skip
    return render_model_card(
        adapter, job, base_id="mistralai/Mistral-7B-Instruct-v0.3", base_license=base_license,
        data={"rows.jsonl": DIGEST}, history=HISTORY, has_curve=True,
    )  # fmt: skip


def test_the_card_says_base_data_settings_losses_hardware_and_licence() -> None:
    text = card()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["base_model"], head["license"]) == ("mistralai/Mistral-7B-Instruct-v0.3", "apache-2.0")
    for part in (
        f"| rows.jsonl | `{DIGEST}` |",
        "rank 32, alpha 64, dropout 0.05, scaled by alpha / sqrt(rank)",
        "the weights are those of step 2 of 3",
        "| held-out loss of these weights | 1.2000 |",
        "| held-out loss of the last step (`last/`) | 1.4000 |",
        "| 3 | 1.4000 | 75% | 0.600 |",
        "NVIDIA A100-SXM4-40GB",
        "400 tokens per second",
        "31.00 GB, 32.00 GB estimated",
        "is under Apache-2.0",
        "loss_curve.png",
        DIGEST,
    ):
        assert part in text, part
    assert "/home/someone" not in text  # a card is published


def test_a_card_without_a_known_licence_says_so() -> None:
    text = card(None, stopped_early=True)
    assert yaml.safe_load(text.split("---")[1])["license"] == "unknown"
    assert "The licence of mistralai/Mistral-7B-Instruct-v0.3 is not known here" in text
    assert "early: the held-out loss got no better" in text


def test_the_curve_is_a_picture_and_is_drawn_alike_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.png", "b.png"):
        draw_loss(HISTORY, tmp_path / name, kept_step=2)
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "b.png").read_bytes()
    draw_loss(HISTORY[:2], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() != first


def test_the_running_mean_begins_at_the_first_value() -> None:
    assert running_mean([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    falling = running_mean([2.0, 1.0, 0.0])
    assert falling[0] == 2.0
    assert 0 < falling[2] < falling[1] < 2.0
