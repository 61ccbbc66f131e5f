"""Hold a student against its base model, and the teacher's recorded answers, on held-out concepts.

    python examples/evaluator.py STUDENT.gguf TEST.jsonl [BASE.gguf] [FOLDER]

STUDENT.gguf is what examples/packager.py wrote, TEST.jsonl the test split of a dataset. Needs
`pip install "po-distill[llamacpp]"`; any other provider may take the place of `llama_cpp`.
"""

import sys
import tempfile
from pathlib import Path

from po_distill import Evaluator, GenerationSettings, ProviderSettings

student, cases, *more = sys.argv[1:]
base = more[0] if more else None
folder = Path(more[1] if len(more) > 1 else tempfile.mkdtemp(prefix="po_distill_"))

candidates = {
    **({"base": ProviderSettings(provider="llama_cpp", model=base)} if base else {}),
    "student": ProviderSettings(provider="llama_cpp", model=student),
    # "teacher": "completions.jsonl",  # recorded answers to the same concepts are judged beside them
}
evaluator = Evaluator(
    subset=12,  # stratified by planted verdict; None takes all cases
    generation=GenerationSettings(temperature=0.0, max_tokens=768),
    folder=folder / "evaluation",
    report_path=folder / "report.md",
    log_path=folder / "evaluation_calls.log",
)
report = evaluator.evaluate(cases, candidates)

for candidate in report.candidates:
    print(
        f"{candidate.name}: metric {candidate.score_mean:.3f}, valid {candidate.valid_share:.2f}, "
        f"{candidate.seconds_per_call:.1f} s a call"
    )
print("accepted" if report.verdict.passed else "not accepted", *report.verdict.reasons, sep="\n  ")
print(folder / "report.md")
