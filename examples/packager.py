"""Package a merged model: a quantized GGUF, a Modelfile, and with a server a proven model on it.

    python examples/packager.py MODEL_FOLDER [NAME [HOST]]

MODEL_FOLDER is what examples/merger.py wrote, HOST an Ollama server such as http://127.0.0.1:11434. Needs
`pip install "po-distill[gguf]"`, with a server `"po-distill[gguf,ollama]"`.
"""

import sys
from pathlib import Path

from po_distill import Packager

model = Path(sys.argv[1])
name = sys.argv[2] if len(sys.argv) > 2 else "po-student-v1"
host = sys.argv[3] if len(sys.argv) > 3 else None

packager = Packager(name=name, quantization="q4_0")
package = packager.package(model)
print(f"{package.gguf.path}: {package.gguf.size_bytes / 1e6:.0f} MB, {package.gguf.tensors}")
print(f"{package.modelfile_path}: num_ctx {package.num_ctx}, stops {package.stops}")
for runtime, command in package.serve.items():
    print(f"{runtime}: {command}")

if host:
    installed = packager.install(package, host)
    print(f"{installed.alias} is {installed.name}, which answered {installed.answer_tokens} tokens and stopped.")
