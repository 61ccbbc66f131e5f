import io
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from po_distill.records import (
    AdapterScale,
    InspectedAdapter,
    InspectedFile,
    InspectedTensor,
    InspectedTokenizer,
    TensorGroup,
    WeightsInspection,
)
from po_distill.reporting.inspection_text import size_text, tell_inspection, template_text

SNAPSHOT = Path(__file__).parent / "snapshots" / "inspection.txt"
_DIGEST = "sha256:" + "0a1b2c3d" * 8
_NAMES = [f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.weight" for layer in range(2)]


def told(found: WeightsInspection, **settings: Any) -> str:
    wanted = {name: settings.pop(name) for name in ("all_tensors",) if name in settings}
    console = Console(file=io.StringIO(), width=80, highlight=False, force_terminal=bool(settings), **settings)
    tell_inspection(found, console=console, **wanted)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def inspection(**changes: Any) -> WeightsInspection:
    """An adapter with something in each part of the print."""
    whole: dict[str, Any] = {
        "path": "models/po_student_v1/adapter",
        "kind": "adapter",
        "architecture": "LORA",
        "parameters": 4_194_304,
        "size_bytes": 16_777_216,
        "files": (InspectedFile(name="adapter_model.safetensors", size_bytes=16_780_000, digest=_DIGEST),),
        "digest": None,
        "by_type": (TensorGroup(name="F32", tensors=2, parameters=4_194_304, size_bytes=16_777_216),),
        "by_part": (
            TensorGroup(
                name="model.layers.*.self_attn.q_proj.lora_A.weight",
                tensors=2,
                parameters=4_194_304,
                size_bytes=16_777_216,
            ),
        ),
        "adapter": InspectedAdapter(
            kind="LORA",
            base_name="mistralai/Mistral-7B-Instruct-v0.3",
            rs_lora=True,
            dora=False,
            scales=(
                AdapterScale(rank=16, alpha=32, scale=8.0, modules=2),
                AdapterScale(rank=8, alpha=32, scale=11.313708498984761, modules=1),
            ),
            target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            modules_to_save=("lm_head",),
        ),
        "template": "{%- for message in messages %}\n{{ '<|im_start|>' }}\n{%- endfor %}",
        "template_form": "ChatML",
        "ours": {"base_digest": _DIGEST, "contract": {"name": "vision", "role": "product_owner"}},
        "metadata": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none", "rank_pattern": {}, "odd": 1},
        "notes": ("adapter_model.safetensors is not the file that po_distill.json was written for",),
        "tensors": tuple(
            InspectedTensor(
                name=name, type="F32", shape=(16, 4096), parameters=65_536, size_bytes=262_144, file="a.safetensors"
            )
            for name in _NAMES
        ),
    }
    return WeightsInspection(**{**whole, **changes})


def gguf(**changes: Any) -> WeightsInspection:
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": {"array": "string", "count": 49_152},
        "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
        "tokenizer.chat_template": "{{ x }}",
        "po_distill.package": "po-student-v1",
    }
    tokenizer = InspectedTokenizer(kind="gpt2", tokens=49_152, added_tokens=None, pre_tokenizer="smollm")
    made = {"kind": "gguf", "architecture": "llama", "adapter": None, "metadata": metadata, "tokenizer": tokenizer}
    return inspection(**{**made, "notes": (), **changes})


def test_an_adapter_is_told_as_it_was() -> None:
    """After a wanted change: PO_DISTILL_UPDATE_SNAPSHOTS=1 pytest, and read the difference."""
    text = told(inspection()) + "\n---\n\n" + told(inspection(), all_tensors=True)
    if os.environ.get("PO_DISTILL_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8")


def test_every_line_fits_into_80_columns() -> None:
    long = {"base_model_name_or_path": "x" * 300, "task_type": "y" * 300}
    for found in (inspection(metadata=long, path="p" * 200, template="t" * 900), gguf(architecture="z" * 200)):
        for all_tensors in (False, True):
            assert max(map(len, told(found, all_tensors=all_tensors).splitlines())) <= 80


def test_names_and_values_of_other_people_send_nothing_to_the_terminal() -> None:
    evil = "a\x1b[2J\x07\u202e[bold]b"
    group = TensorGroup(name=evil, tensors=1, parameters=1, size_bytes=1)
    found = gguf(
        path=evil,
        architecture=evil,
        template=f"{evil}\n{evil}",
        metadata={evil: evil, "k": [evil], "d": {evil: evil}},
        ours={evil: {evil: evil}},
        notes=(evil,),
        by_part=(group,),
        files=(InspectedFile(name=evil, size_bytes=1, digest=None),),
        tokenizer=InspectedTokenizer(kind=evil, tokens=1, added_tokens=1, pre_tokenizer=evil),
        tensors=(InspectedTensor(name=evil, type="F32", shape=(), parameters=1, size_bytes=4, file=evil),),
    )
    for text in (told(found), told(found, all_tensors=True), template_text(evil)):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert "[bold]" in told(found)


def test_long_arrays_are_counts_and_numbers_are_short() -> None:
    text = told(gguf())
    assert "49,152 of string" in text
    assert "1e-05" in text
    assert "tokenizer.chat_template" not in text and "po_distill.package" not in text


def test_many_parts_are_cut_and_counted() -> None:
    parts = tuple(TensorGroup(name=f"part{n}", tensors=2, parameters=1, size_bytes=1) for n in range(50))
    text = told(gguf(by_part=parts))
    assert "part29" in text and "part30" not in text
    assert "and 20 others with 40 tensors: --tensors shows them" in text


def test_notes_are_yellow_and_marked_for_those_who_see_no_colour() -> None:
    assert "! adapter_model.safetensors is not the file" in told(inspection())
    assert "\x1b[33m! adapter_model" in told(inspection(), color_system="standard", no_color=False)


def test_a_template_is_printed_whole_with_its_lines() -> None:
    assert template_text("a\n\tb\n") == "a\n\tb\n"


def test_sizes_are_told_in_steps_of_a_thousand() -> None:
    assert [size_text(size) for size in (0, 999, 1_000, 2_500_000, 14_480_000_000)] == [
        *("0 B", "999 B", "1.00 kB", "2.50 MB", "14.48 GB"),
    ]
