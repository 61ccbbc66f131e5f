"""What a weight file is, on a terminal of 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from po_distill.records import TensorGroup, WeightsInspection
from po_distill.reporting.foreign_text import for_terminal

_KINDS = {
    "safetensors": "safetensors file",
    "checkpoint": "checkpoint folder",
    "adapter": "adapter folder",
    "gguf": "GGUF file",
}
# Of config.json and adapter_config.json; of the other kinds everything is shown.
_FIELDS = {
    "checkpoint": (
        *("model_type", "dtype", "torch_dtype", "vocab_size", "hidden_size", "intermediate_size", "head_dim"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        *("sliding_window", "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "quantization_config", "transformers_version"),
    ),
    "adapter": (
        *("task_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "lora_dropout", "bias", "fan_in_fan_out"),
        *("init_lora_weights", "layers_to_transform", "layers_pattern", "exclude_modules", "peft_version"),
    ),
}
_HIDDEN = ("tokenizer.chat_template",)  # shown by itself
_PARTS_SHOWN = 30
_TEMPLATE_LINES_SHOWN = 6
_LONGEST_VALUE = 240  # characters


def tell_inspection(found: WeightsInspection, *, all_tensors: bool = False, console: Console | None = None) -> None:
    """Print what a weight file or folder is: in short, or with a line for each tensor."""
    console = console or Console(highlight=False)
    console.print(_text(found.path, "bold"))
    _print_pairs(console, _summary(found))
    for note in found.notes:
        console.print(Padding(_text(f"! {note}", "yellow"), (0, 0, 0, 2), expand=False))
    _print_groups(console, "Types", "type", found.by_type)
    if all_tensors:
        _print_tensors(console, found)
    else:
        _print_groups(console, "Parts", "tensors of", found.by_part[:_PARTS_SHOWN])
        if rest := found.by_part[_PARTS_SHOWN:]:
            tensors = sum(group.tensors for group in rest)
            console.print(f"  and {len(rest):,} others with {tensors:,} tensors: --tensors shows them", style="dim")
    _print_section(console, "From po_distill", _flat(found.ours))
    _print_section(console, "Metadata", _shown_metadata(found))
    _print_template(console, found)
    _print_files(console, found)


def template_text(template: str) -> str:
    """A chat template whole, line by line, without escape sequences."""
    return "\n".join("".join(c if c.isprintable() or c == "\t" else "?" for c in line) for line in template.split("\n"))


def size_text(size_bytes: int) -> str:
    """Bytes as people say them."""
    for unit, bytes_of_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= bytes_of_unit:
            return f"{size_bytes / bytes_of_unit:,.2f} {unit}"
    return f"{size_bytes} B"


# --- parts of the print ---------------------------------------------------------------------------


def _summary(found: WeightsInspection) -> list[tuple[str, str]]:
    pairs = [("kind", _KINDS[found.kind])]
    files = {tensor.file for tensor in found.tensors} or {""}
    if found.architecture and found.adapter is None:
        pairs.append(("architecture", found.architecture))
    pairs += [
        ("parameters", f"{found.parameters:,}"),
        ("tensors", f"{len(found.tensors):,}, {size_text(found.size_bytes)} in {_many(len(files), 'file')}"),
        *_adapter_pairs(found),
    ]
    if (tokenizer := found.tokenizer) is not None:
        told = [tokenizer.kind]
        told += [f"{tokenizer.tokens:,} tokens"] if tokenizer.tokens is not None else []
        told += [f"{tokenizer.added_tokens:,} added tokens"] if tokenizer.added_tokens else []
        told += [f"split by {tokenizer.pre_tokenizer}"] if tokenizer.pre_tokenizer else []
        pairs.append(("tokenizer", ", ".join(told)))
    return pairs


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _adapter_pairs(found: WeightsInspection) -> list[tuple[str, str]]:
    adapter = found.adapter
    if adapter is None:
        return []
    root = "sqrt(r)" if adapter.rs_lora else "r"
    scales = [
        f"{scale.scale:.6g} = alpha {scale.alpha:g} / {root}, r {scale.rank:g}, for {_many(scale.modules, 'module')}"
        for scale in adapter.scales
    ]
    targets = adapter.target_modules
    kinds = [adapter.kind, *(["rsLoRA"] if adapter.rs_lora else []), *(["DoRA"] if adapter.dora else [])]
    return [
        ("adapter", ", ".join(kinds)),
        ("base", adapter.base_name or "not named"),
        *(("scale", scale) for scale in scales),
        ("target modules", targets if isinstance(targets, str) else ", ".join(targets) or "not named"),
        *([("saved whole", ", ".join(adapter.modules_to_save))] if adapter.modules_to_save else []),
    ]


def _print_groups(console: Console, title: str, column: str, groups: Sequence[TensorGroup]) -> None:
    _title(console, title)
    table = _table(column, "tensors", "parameters", "bytes")
    for group in groups:
        table.add_row(_text(group.name), f"{group.tensors:,}", f"{group.parameters:,}", size_text(group.size_bytes))
    _print_indented(console, table)


def _print_tensors(console: Console, found: WeightsInspection) -> None:
    _title(console, "Tensors")
    table = _table("name", "type", "shape", "bytes")
    for tensor in found.tensors:
        shape = " x ".join(str(number) for number in tensor.shape) or "scalar"
        table.add_row(_text(tensor.name), tensor.type, shape, f"{tensor.size_bytes:,}")
    _print_indented(console, table)


def _shown_metadata(found: WeightsInspection) -> list[tuple[str, str]]:
    wanted: Iterable[str] = _FIELDS.get(found.kind, tuple(found.metadata))
    ours = "po_distill."
    return [
        (name, _value(found.metadata[name]))
        for name in wanted
        if found.metadata.get(name) not in (None, {}, []) and name not in _HIDDEN and not name.startswith(ours)
    ]


def _flat(values: Mapping[str, JsonValue], prefix: str = "") -> list[tuple[str, str]]:
    """Values by name; those of an object in an object by both names."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and not prefix:
            pairs += _flat(value, f"{name}.")
        elif value is not None:
            pairs.append((prefix + name, _value(value)))
    return pairs


def _value(value: JsonValue) -> str:
    if isinstance(value, dict) and value.keys() == {"array", "count"}:
        return f"{value['count']:,} of {value['array']}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_template(console: Console, found: WeightsInspection) -> None:
    if found.template is None:
        return
    lines = template_text(found.template).split("\n")
    form = found.template_form or "no known form"
    _title(console, "Chat template", f"{form}, {len(found.template):,} characters")
    room = max(20, console.width - 4)
    for line in lines[:_TEMPLATE_LINES_SHOWN]:
        console.print(Text(f"  {line if len(line) <= room else line[: room - 1] + '…'}", style="dim"))
    if len(lines) > _TEMPLATE_LINES_SHOWN or max(map(len, lines)) > room:
        console.print("  --template shows it whole", style="dim")


def _print_files(console: Console, found: WeightsInspection) -> None:
    _title(console, "Files")
    for file in found.files:
        console.print(Text(f"  {for_terminal(file.name)}  {size_text(file.size_bytes)}"))
        if file.digest is not None:
            console.print(f"    {file.digest}", style="dim", soft_wrap=True)
    if found.digest is not None:
        console.print("  The weights, as an adapter records its base")
        console.print(f"    {found.digest}", style="dim", soft_wrap=True)


def _print_section(console: Console, title: str, pairs: Sequence[tuple[str, str]]) -> None:
    if pairs:
        _title(console, title)
        _print_pairs(console, pairs)


def _print_pairs(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(_text(name, "dim"), _text(value))
    _print_indented(console, grid)


def _print_indented(console: Console, table: Table) -> None:
    if table.row_count:
        console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _title(console: Console, title: str, rest: str = "") -> None:
    console.print(Text.assemble("\n", (title, "bold"), f": {rest}" if rest else ""))


def _text(value: str, style: str = "") -> Text:
    return Text(for_terminal(value, _LONGEST_VALUE), style=style)
