"""The Product Owner inside DSPy, offline: the same program with a teacher, judged, and optimized for its model.

`python examples/dspy_product_owner.py` asks the embedded rules. Give the name of a model in their place, such as a
student on an Ollama server (`po-student-v1`) or a GGUF file.
"""

import contextlib
import sys

import dspy
import yaml

from po_distill import Evaluator
from po_distill.dspy import ModuleProvider, ProductOwner, dspy_metric, mipro, role_instructions, student_lm
from po_distill.plugins import load

role = load("roles", "product_owner")(contract="dspy")
concepts = role.generate_concepts(12, seed=5)

# A program does not know who answers it.
lm = student_lm(sys.argv[1] if len(sys.argv) > 1 else "offline")
dspy.configure(lm=lm)
program = ProductOwner()
answer = program(concept=concepts[0].concept, requirements_yaml=concepts[0].requirements_yaml)
print(yaml.safe_load(answer.product_owner_review)["status"])

# The metric of the role, as DSPy's optimizers want it: a number that is true only from 0.85 on.
metric = dspy_metric("product_owner", min_score=0.85)
question = dspy.Example(requirements_yaml=concepts[0].requirements_yaml)
score = metric(question, answer)
print(f"score {score:.2f}, kept as a demonstration: {bool(score)}")

# MIPROv2 that never asks the student for instructions, and whose prompts fit its context.
examples = []
for concept in concepts:
    inputs, _ = role.metric_fields(concept, "")
    _, outputs = role.metric_fields(concept, role.answer_by_rules(concept))
    examples.append(dspy.Example(**inputs, **outputs).with_inputs(*inputs))
optimizer = mipro(prompt_model=role_instructions(), num_ctx=lm.num_ctx or 8192, auto=None, num_candidates=3)
with contextlib.redirect_stdout(sys.stderr):  # DSPy prints what it does
    best = optimizer.compile(program, trainset=examples[:8], valset=examples[8:], num_trials=2, minibatch=False)
print(f"optimized: {best.score:.1f} of 100")

# What ships is the program, so that is what is evaluated.
report = Evaluator(folder="evaluation", report_path=None, log_path=None).evaluate(
    concepts[8:], {"student": ModuleProvider.of(best)}
)
print(f"valid {report.candidates[0].valid_share:.0%}, mean score {report.candidates[0].score_mean:.2f}")
