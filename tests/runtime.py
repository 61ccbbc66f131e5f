"""llama.cpp beside transformers: what both make of the same model."""

import asyncio
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from po_distill.providers.llama_cpp import LlamaCppProvider
from po_distill.records import Message, ProviderSettings


class Runtime:
    """A GGUF in llama.cpp, asked from plain functions. Use as a context manager."""

    def __init__(self, path: Path, **options: object) -> None:
        settings = ProviderSettings(provider="llama_cpp", model=str(path), options={"n_threads": 1, **options})
        self.provider = LlamaCppProvider(settings, None)
        self._runner = asyncio.Runner()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self.provider.aclose())
        self._runner.close()

    def token_ids(self, chat: list[dict[str, str]]) -> list[int]:
        return self._runner.run(self.provider.token_ids([Message(**turn) for turn in chat]))

    def tokenize(self, text: str) -> list[int]:
        return self._runner.run(self.provider.tokenize(text))

    def continue_greedily(self, token_ids: list[int], count: int) -> list[int]:
        return [token for token, _ in self._runner.run(self.provider.continue_greedily(token_ids, count))]


def greedy_agreement(gguf: Path, checkpoint: Path, prompts: list[list[int]], count: int, **options: object) -> float:
    """The share of positions where transformers in float32 would have put the token that llama.cpp put."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    same = total = 0
    with Runtime(gguf, n_ctx=512, **options) as runtime:
        for prompt in prompts:
            said = runtime.continue_greedily(prompt, count)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
            same += sum(int(a == b) for a, b in zip(logits.argmax(-1).tolist(), said, strict=True))
            total += len(said)
    return same / total
