"""The commands that make a student out of an adapter: merge, package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from po_distill.commands.options import (
    QUANTIZATIONS,
    SectionedCommand,
    SectionedGroup,
    json_option,
    print_result,
    sectioned,
)
from po_distill.commands.package import list_students, remove, tell_installed

_PATH = click.Path(path_type=Path)


@click.command(cls=SectionedCommand)
@sectioned(
    "What is merged",
    "--adapter",
    "--adapter-path",
    "adapters",
    required=True,
    multiple=True,
    help="Adapter folder; FOLDER:0.7 takes a part of it. Several are added up.",
)
@sectioned(
    "What is merged", "--base", "--base-model", "base", help="Name, folder or hub id.  [default: the adapter's own]"
)
@sectioned(
    "What is written",
    "--output",
    "--output-dir",
    "output",
    type=_PATH,
    help="Version folder.  [default: the adapter's]",
)
@sectioned(
    "What is written",
    "--dtype",
    type=click.Choice(["float16", "bfloat16"]),
    default="float16",
    show_default=True,
    help="Of the checkpoint.",
)
@sectioned(
    "What is written",
    "--shard-gb",
    type=click.FloatRange(min=0, min_open=True),
    help="Split the checkpoint at this size.",
)
@sectioned(
    "What is written",
    "--gguf",
    type=click.Choice(QUANTIZATIONS, case_sensitive=False),
    help="Write a GGUF too, in the same pass.",
)
@sectioned("What is written", "--checkpoint/--no-checkpoint", default=True, help="Or the GGUF alone.  [default: both]")
@sectioned(
    "How it is proven",
    "--verify",
    type=_PATH,
    help="Dataset on whose prompts the logits of base + adapter, merged model and GGUF are compared.",
)
@json_option
def merge(
    adapters: tuple[str, ...], base: str | None, output: Path | None, dtype: Any, shard_gb: float | None,
    gguf: Any, checkpoint: bool, verify: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Merge adapters into their base: a checkpoint in 16 bits, a GGUF, or both in one pass.

    Each merge is proven by a sample of its values, computed again from base and adapter by another way; --verify
    compares what the models answer. A merge that was killed goes on where it was.
    """
    from po_distill.reporting import console
    from po_distill.stages.merger import Merger

    wanted = [_weighted(adapter) for adapter in adapters]
    if output is None and len(wanted) > 1:
        raise click.UsageError("Name the version folder of a merge of several adapters: --output FOLDER.")
    merger = Merger(
        dtype=dtype,
        most_shard_bytes=round(shard_gb * 1e9) if shard_gb else None,
        gguf=gguf.lower() if gguf else None,
        checkpoint=checkpoint,
    )
    merged = merger.merge(wanted, output or _version_folder(wanted[0][0]), base=base, verify=verify)
    print_result(merged, as_json, lambda _: console.tell_merge(merged))


def _version_folder(adapter: Path) -> Path:
    """The folder that holds an adapter; `adapter` is the adapter's folder or that one itself."""
    is_version = not (adapter / "adapter_config.json").exists() and (adapter / "adapter").is_dir()
    return adapter if is_version else adapter.resolve().parent


def _weighted(text: str) -> tuple[Path, float]:
    """FOLDER, or FOLDER:0.7."""
    folder, colon, weight = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            return Path(folder), float(weight)
        except ValueError:
            pass
    return Path(text), 1.0


@click.group(cls=SectionedGroup, invoke_without_command=True)
@sectioned("What is packaged", "--model", "--model-path", "model", type=_PATH, help="Merged model's folder.")
@sectioned(
    "What is packaged", "--adapter", "--adapter-path", "adapter", type=_PATH, help="Adapter folder, to be merged first."
)
@sectioned("What is packaged", "--base", "--base-model", "base", help="Its base.  [default: the adapter's own]")
@sectioned("As what", "--name", help="Name of the Ollama model.  [default: the folder's]")
@sectioned(
    "As what",
    "--quant",
    default="q4_0",
    show_default=True,
    type=click.Choice(QUANTIZATIONS, case_sensitive=False),
)
@sectioned(
    "As what",
    "--num-ctx",
    type=click.IntRange(min=1),
    help="Tokens of context.  [default: the longest row of the training, and an answer]",
)
@sectioned(
    "As what", "--num-predict", default=4096, show_default=True, type=click.IntRange(min=1), help="Longest answer."
)
@sectioned("As what", "--temperature", default=0.4, show_default=True, type=click.FloatRange(0, 2))
@sectioned(
    "Where it runs",
    "--target",
    default="ollama",
    show_default=True,
    type=click.Choice(["ollama", "llama_cpp", "vllm"]),
    help="Runtime whose command is printed.",
)
@sectioned("Where it runs", "--install", is_flag=True, help="Make it on an Ollama server, and prove it there.")
@sectioned("Where it runs", "--host", help="That server.  [default: OLLAMA_HOST, else this machine]")
@sectioned("Output", "--output", "--output-dir", "output", type=_PATH, help="Folder.  [default: the model's]")
@json_option
def package(
    model: Path | None, adapter: Path | None, base: str | None, name: str | None, quant: str, num_ctx: int | None,
    num_predict: int, temperature: float, target: str, install: bool, host: str | None, output: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write the GGUF and the Modelfile for a merged model, and make it on an Ollama server.

    With --install the model is made under a tag of its own, proven (what it is made of, the prompt it sees, one
    answer), and only then the name stands for it. `package list` shows the students of a server, `package remove`
    takes one away.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return None
    if (model is None) == (adapter is None):
        raise click.UsageError("Name what is packaged: --model FOLDER, or --adapter FOLDER to merge it first.")
    from po_distill.ollama_server import OllamaServer
    from po_distill.reporting import console
    from po_distill.stages.packager import Packager

    if install:
        OllamaServer(host).models()  # that there is none is better known before the weights are merged and rounded
    folder = model if model is not None else _merged(adapter, base, quant.lower())
    packager = Packager(
        name or folder.resolve().name.replace("_", "-"), cast(Any, quant.lower()), num_ctx=num_ctx,
        num_predict=num_predict, temperature=temperature,
    )  # fmt: skip
    made = packager.package(folder, output)
    if install:
        installed = packager.install(made, host)
        both = {**made.model_dump(mode="json"), "installed": installed.model_dump(mode="json")}
        return print_result(both, as_json, lambda _: tell_installed(installed))
    files = f"GGUF: {made.gguf.path}\nModelfile: {made.modelfile_path}"
    return print_result(made, as_json, lambda _: console.tell_next(files, made.serve[target]))


package.add_command(list_students)
package.add_command(remove)


def _merged(adapter: Path | None, base: str | None, quantization: Any) -> Path:
    from po_distill.stages.merger import Merger

    assert adapter is not None
    return Path(Merger(gguf=quantization).merge(adapter, _version_folder(adapter), base=base).path)
