"""Sends the prompts of a file through bespokelabs-curator, and says how long that took; run by teacher_peer.py.

It runs in a Python that has curator and nothing of ours. What it measures is the call of the model on the prompts,
after a call on the first one, so without imports and without opening it.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import litellm.litellm_core_utils.default_encoding  # noqa: F401  tiktoken then reads its tables from litellm's files
from bespokelabs import curator


class Asking(curator.LLM):
    """The prompts as they are, and the answers as they come."""

    def prompt(self, row: dict[str, Any]) -> Any:
        return [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["user"]}]

    def parse(self, row: dict[str, Any], response: Any) -> Any:
        return {"user": row["user"], "answer": response}


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    asking = Asking(
        model_name=given["model"],
        backend="openai",  # its leanest road to such a server: aiohttp, without litellm in between
        backend_params={"base_url": given["base_url"], **given["backend_params"]},
        generation_params=given["generation_params"],
    )
    asking(given["prompts"][:1])  # what is imported or opened late is not timed
    started = time.perf_counter()
    answered = asking(given["prompts"])
    took_s = time.perf_counter() - started
    good = sum(bool(row["answer"]) for row in answered.dataset)
    print(json.dumps({"peer": f"bespokelabs-curator {version('bespokelabs-curator')}", "s": took_s, "answers": good}))


if __name__ == "__main__":
    main()
