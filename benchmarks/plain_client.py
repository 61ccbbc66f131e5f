"""Does a plain `ollama` client get from a package what production reads: both labelled blocks, each a YAML mapping?

`python benchmarks/plain_client.py FOLDER ROWS.jsonl --cases 6` installs the package in FOLDER on the tests' fake of an
Ollama server, which answers with the uploaded GGUF, and asks it held-out concepts as production does: system and user
message, `/api/chat`, temperature 0.4. Exits with 1 where an answer lacks a block.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import ollama
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.ollama_server import FakeOllama
from po_distill import Packager, plugins
from po_distill.held_out import read_cases


def readable(answer: str) -> bool:
    """Whether both blocks are there, and each is a mapping as it stands."""
    for label in ("VISION", "REVIEW"):
        _, found, rest = answer.partition(f"```yaml {label}\n")
        try:
            if not found or not isinstance(yaml.safe_load(rest.partition("```")[0]), dict):
                return False
        except yaml.YAMLError:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--cases", type=int, default=6)
    given = parser.parse_args()
    role = plugins.load("roles", "product_owner")()
    cases = read_cases(given.rows, role)[: given.cases]
    good = 0
    with tempfile.TemporaryDirectory() as folder, FakeOllama(Path(folder) / "models") as fake:
        installed = Packager().install(given.folder, fake.base_url)
        client = ollama.Client(host=fake.base_url, timeout=600)
        for case in cases:
            messages = [{"role": each.speaker, "content": each.content} for each in role.render(case)]
            said = client.chat(model=installed.alias, messages=messages, options={"temperature": 0.4})
            good += (found := readable(said.message.content or ""))
            print(case.concept_id, "readable" if found else "not readable", flush=True)
    print(f"{good} of {len(cases)}")
    sys.exit(0 if cases and good == len(cases) else 1)


if __name__ == "__main__":
    main()
