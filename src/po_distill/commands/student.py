"""The commands that make a student out of a dataset: train, merge, package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from po_distill.commands.options import (
    DATASET,
    MODELS,
    QUANTIZATIONS,
    SectionedCommand,
    SectionedGroup,
    json_option,
    open_role_of,
    print_result,
    role_options,
    sectioned,
)
from po_distill.commands.package import list_students, remove, tell_installed

_PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--data", "--data-path", "data", default=DATASET, show_default=True, type=click.Path(path_type=Path),
    help="JSONL of examples, or of {prompt, response} rows.",
)  # fmt: skip
@click.option(
    "--base", "--base-model", "base", default="mistral-7b-instruct", show_default=True, help="Name, folder or hub id."
)
@click.option(
    "--output", "--output-dir", "output", type=click.Path(path_type=Path), help="Version folder.  [default: the next]"
)
@click.option("--rank", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--alpha", default=64.0, show_default=True, type=float)
@click.option("--dropout", default=0.05, show_default=True, type=click.FloatRange(0, 1, max_open=True))
@click.option("--epochs", default=3.0, show_default=True, type=float)
@click.option("--batch", default=4, show_default=True, type=click.IntRange(min=1), help="Examples per optimizer step.")
@click.option("--lr", default=1e-4, show_default=True, type=float, help="Learning rate.")
@click.option(
    "--max-seq-len",
    default=2048,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens; longer rows are an error.",
)
@click.option("--max-samples", type=click.IntRange(min=1), help="Train on only so many rows.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after so many optimizer steps.")
@click.option("--minutes", type=click.FloatRange(min=0.1), help="Plan the steps to fit this time.")
@click.option("--seed", default=7, show_default=True)
@role_options
@click.option("--held-out", multiple=True, type=click.Path(path_type=Path), help="File that no row may be in.")
@click.option("--allow", multiple=True, help="A rule of `dataset check` that the dataset may break; may be repeated.")
@click.option("--quantization-aware", type=click.Choice(["q4_0"]), help="Train against weights rounded as they ship.")
@click.option("--launcher", default="local", show_default=True, help="Where the run runs.")
@json_option
def train(
    data: Path, base: str, output: Path | None, rank: int, alpha: float, dropout: float, epochs: float, batch: int,
    lr: float, max_seq_len: int, max_samples: int | None, max_steps: int | None, minutes: float | None, seed: int,
    role: str, contract: str | None, prompt_path: Path | None, held_out: tuple[Path, ...], allow: tuple[str, ...],
    quantization_aware: Any, launcher: str, as_json: bool,
) -> None:  # fmt: skip
    """Train a LoRA adapter on a dataset.

    The dataset is checked first, as by `dataset check`: one that is not fit for training is refused, unless --allow
    names each rule that it breaks.
    """
    from po_distill.artifacts import next_version
    from po_distill.records import LoRASettings
    from po_distill.reporting import console
    from po_distill.stages.dataset_doctor import DatasetDoctor, require_fit
    from po_distill.stages.lora_trainer import LoRATrainer
    from po_distill.weights.checkpoint import check_name

    check_name(base)
    opened, judged_by = open_role_of(data, role, contract, prompt_path)
    doctor = DatasetDoctor(opened, held_out=held_out, allow=allow, **judged_by)  # the trainer counts tokens itself
    require_fit(doctor.check(data, most=max_samples))
    folder = output or Path(MODELS) / next_version(MODELS, "po_student")
    trainer = LoRATrainer(
        base=base, lora=LoRASettings(rank=rank, alpha=alpha, dropout=dropout), epochs=epochs, batch=batch,
        learning_rate=lr, max_seq_len=max_seq_len, max_samples=max_samples, max_steps=max_steps, minutes=minutes,
        seed=seed, quantization_aware=quantization_aware, launcher=launcher,
    )  # fmt: skip
    adapter = trainer.train(data, folder, log_path=Path("logs/distillation") / f"train_{folder.name}.jsonl")
    print_result(
        adapter,
        as_json,
        lambda _: console.tell_next(f"Adapter: {adapter.path}", f"po-distill merge --adapter {adapter.path}"),
    )


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
