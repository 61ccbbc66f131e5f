"""Merge an adapter into its base model: one FP16 safetensors file, and a folder that transformers loads.

    python examples/merger.py ADAPTER_FOLDER [FOLDER]

ADAPTER_FOLDER is what examples/lora_trainer.py printed, or any LoRA adapter in PEFT's layout. Without FOLDER the
merged model lies beside the adapter. Needs `pip install "po-distill[train]"`.
"""

import sys
from pathlib import Path

from po_distill import Merger

adapter = Path(sys.argv[1])
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else adapter.parent

merged = Merger().merge(adapter, folder)
print(f"{merged.merged_tensors} of {merged.tensors} tensors changed by the adapter")
print(merged.weights_path)
