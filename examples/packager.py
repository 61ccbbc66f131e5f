"""Package a merged model: a quantized GGUF, and a Modelfile for Ollama.

    python examples/packager.py MODEL_FOLDER [NAME]

MODEL_FOLDER is what examples/merger.py wrote. Needs `pip install "po-distill[gguf]"`.
"""

import sys
from pathlib import Path

from po_distill import Packager

model = Path(sys.argv[1])
name = sys.argv[2] if len(sys.argv) > 2 else "po-student-v1"

package = Packager(name=name, quantization="q4_0").package(model)
print(f"{package.gguf.path}: {package.gguf.size_bytes / 1e6:.0f} MB, {package.gguf.tensors}")
print(f"{package.modelfile_path}: num_ctx {package.num_ctx}, stops {package.stops}")
print(f"Where an Ollama server runs: {package.create_command}")
