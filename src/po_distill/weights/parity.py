"""Whether a merge answers as it should: logits of its forms on real prompts, compared by token ids.

Base and adapter against the merged checkpoint shows the merge; the GGUF in the runtime against its own weights in
transformers shows names, row order and tokenizer; against the merged checkpoint it shows what rounding costs.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_distill import plugins
from po_distill.errors import InputError, MissingExtraError, WeightsError
from po_distill.progress import progress
from po_distill.records import MergedModel, Parity, ProviderSettings
from po_distill.weights.checkpoint import read_config
from po_distill.weights.gguf_layout import architecture_of, rotary_rows
from po_distill.weights.gguf_placement import place_tensors
from po_distill.weights.quiet import quiet_transformers
from po_distill.weights.summed_weights import read_weights
from po_distill.weights.tokenization import load_tokenizer, tokenize_file

_PROMPTS = 4
_TOKENS = 32  # compared after each prompt
_LONGEST = 1 << 20


@dataclass(frozen=True)
class _Said:
    """What a form of the model puts after a prompt: at each position its first choice, and a token's logprob."""

    top: list[int]
    logprobs: Sequence[float | None]  # of the token that the text goes on with; None where it is not told


def measure_merge(
    base: Path, adapters: Sequence[tuple[Path, float]], merged: MergedModel, data: Path
) -> tuple[Parity, ...]:
    """The comparisons that a merge's outputs allow, on rows of the dataset `data`.

    The models are computed in float32 with transformers, one after the other. Raises WeightsError where the memory is
    too small for that, MissingExtraError where the runtime or transformers is not installed.
    """
    folder = Path(merged.path)
    rows = _prompts(folder, data)
    model = _Models(base, folder)
    parities = []
    steps = 2 * (merged.weights_path is not None) + 3 * (merged.gguf is not None)
    with quiet_transformers(), progress("Comparing", steps, "models") as advance:
        if merged.weights_path is not None:
            expected = _along(model.adapted(adapters), rows)
            advance()
            parities.append(_compared("base + adapter", expected, "merged", _along(model.merged(), rows)))
            advance()
        if merged.gguf is not None:
            path = Path(merged.gguf.path)
            texts, said = _runtime(path, [prompt for prompt, _ in rows])
            advance()
            led = [(prompt, text) for (prompt, _), text in zip(rows, texts, strict=True)]
            name = f"{merged.gguf.quantization.upper()} in the runtime"
            parities.append(_compared(name, said, "the same weights in transformers", _along(model.gguf(path), led)))
            advance()
            if merged.weights_path is not None:
                parities.append(_compared(name, said, "merged", _along(model.merged(), led)))
            advance()
    return tuple(parities)


def _prompts(folder: Path, data: Path) -> list[tuple[list[int], list[int]]]:
    """(token ids of a prompt, of what the row answers) for some rows, spread over the file."""
    rows = tokenize_file(data, load_tokenizer(folder), max_seq_len=_LONGEST)
    chosen = rows[:: max(1, len(rows) // _PROMPTS)][:_PROMPTS]
    pairs = [
        (list(row.input_ids[: row.prompt_tokens]), list(row.input_ids[row.prompt_tokens :][:_TOKENS])) for row in chosen
    ]
    if not pairs:
        raise InputError(f"{data} has no rows.", "Name a dataset with prompts.")
    return pairs


def _compared(first: str, expected: Sequence[_Said], second: str, found: Sequence[_Said]) -> Parity:
    pairs = [
        pair
        for a, b in zip(expected, found, strict=True)
        for pair in zip(a.top, b.top, a.logprobs, b.logprobs, strict=True)
    ]
    differences = [abs(a - b) for _, _, a, b in pairs if a is not None and b is not None]
    return Parity(
        first=first,
        second=second,
        positions=len(pairs),
        same_top=sum(a == b for a, b, _, _ in pairs) / len(pairs),
        mean_logprob_difference=sum(differences) / max(1, len(differences)),
    )


def _along(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> list[_Said]:
    """What a transformers model puts at each position of the answers, led along them."""
    import torch

    said = []
    with torch.inference_mode():
        for prompt, answer in rows:
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
            chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
            said.append(_Said(logits.argmax(-1).tolist(), chosen.tolist()))
    return said


def _runtime(path: Path, prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[_Said]]:
    """What the runtime goes on with after each prompt, greedily."""
    longest = max(len(prompt) for prompt in prompts) + _TOKENS + 8
    settings = ProviderSettings(provider="llama_cpp", model=str(path), options={"n_ctx": longest})
    provider: Any = plugins.load("providers", "llama_cpp")(settings, None)

    async def ask() -> list[list[tuple[int, float | None]]]:
        try:
            return [await provider.continue_greedily(prompt, _TOKENS) for prompt in prompts]
        finally:
            await provider.aclose()

    answers = asyncio.run(ask())
    texts = [[token for token, _ in answer] for answer in answers]
    return texts, [_Said(text, [value for _, value in answer]) for text, answer in zip(texts, answers, strict=True)]


class _Models:
    """The forms of one model in transformers, one in memory at a time."""

    def __init__(self, base: Path, folder: Path) -> None:
        try:
            import peft
            import psutil
            import transformers
        except ImportError as error:
            raise MissingExtraError(error.name or "transformers", "train", "Comparing models") from error
        self._base, self._folder = base, folder
        self._model: Any = None
        self._peft, self._transformers = peft, transformers
        needed = 4 * sum(info.elements for info in read_weights(base).values())
        if needed > psutil.virtual_memory().available:
            raise WeightsError(
                f"Comparing needs {needed / 1e9:.1f} GB of memory for the model in float32, "
                f"{psutil.virtual_memory().available / 1e9:.1f} GB are free.",
                "Verify on a machine with more memory; the merge itself is finished.",
            )

    def merged(self) -> Any:
        return self._load(self._folder)

    def adapted(self, adapters: Sequence[tuple[Path, float]]) -> Any:
        model = self._load(self._base)
        names = [f"adapter_{number}" for number in range(len(adapters))]
        for name, (folder, _) in zip(names, adapters, strict=True):
            if name == names[0]:
                model = self._peft.PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            else:
                model.load_adapter(str(folder), adapter_name=name)
        model.base_model.set_adapter(names)
        for module in model.modules():
            for name, (_, weight) in zip(names, adapters, strict=True):
                if isinstance(module, self._peft.tuners.lora.LoraLayer) and name in module.scaling:
                    module.scaling[name] *= weight
        self._model = model
        return model.eval()

    def gguf(self, path: Path) -> Any:
        """The weights of a GGUF, dequantized."""
        import torch

        config = self._transformers.AutoConfig.from_pretrained(self._folder, local_files_only=True)
        self._forget()
        model = self._transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        weights = {name: torch.from_numpy(value) for name, value in _dequantized(path, self._base).items()}
        missing, _ = model.load_state_dict(weights, strict=False, assign=True)
        model.tie_weights()
        left = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
        assert not left, left
        self._model = model
        return model.eval()

    def _load(self, folder: Path) -> Any:
        import torch

        self._forget()
        self._model = self._transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        return self._model.eval()

    def _forget(self) -> None:
        self._model = None
        gc.collect()


def _dequantized(path: Path, base: Path) -> Mapping[str, Any]:
    """The tensors of a GGUF by their names in transformers, float32, rows in transformers' order."""
    import gguf
    import numpy as np
    from gguf.quants import dequantize

    config = read_config(base)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    placements = place_tensors(read_weights(base), config, architecture_of(config, str(base)), "f16", base)
    weights = {}
    for placement in placements:
        if placement.values is not None:  # the runtime's own, which no checkpoint holds
            continue
        tensor = stored[placement.name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(placement.source.shape).astype(np.float32)
        if placement.rotary_heads:
            values = values[np.argsort(rotary_rows(len(values), placement.rotary_heads))]
        weights[placement.source.name] = np.ascontiguousarray(values - np.float32(placement.added))
    return weights
