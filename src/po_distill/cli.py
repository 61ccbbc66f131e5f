"""`po-distill`: one thin command per verb. Each imports its stage when it runs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from po_distill.errors import PODistillError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from po_distill.pipeline import DistillResult

_F = TypeVar("_F", bound=Callable[..., Any])

EXIT_PROBLEM = 1  # a PODistillError: problem and fix are on standard error
EXIT_NOT_PASSED = 3  # the work is done, and its verdict is no
EXIT_INTERRUPTED = 130

_CONCEPTS = "artifacts/synthetic/product_owner/concepts.jsonl"
_DATASET = "artifacts/distillation/po_teacher_dataset.jsonl"
_MODELS = "artifacts/models"


class _Commands(click.Group):
    """Commands in the order of the road; our errors as two lines and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"{error.message.rstrip('.')}.{hint}", ctx) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="po-distill")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Distil one role of an agent pipeline into a fast local model.

    The road: concepts, dataset (a teacher answers), train (LoRA), merge, package (GGUF), evaluate. `quickstart`
    walks it offline in minutes; `run` walks it with your settings.
    """
    ctx.obj = {"debug": debug}


def main() -> None:
    """The console script: runs the command line and turns what it raises into an exit code."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # --debug is the group's option; people write it behind the command.
    ordered = (["--debug"] if debug else []) + [argument for argument in arguments if argument != "--debug"]
    try:
        with _terminated_like_interrupted():
            sys.exit(cli(args=ordered, prog_name="po-distill", standalone_mode=False))
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        click.secho(
            "Interrupted. What was finished is kept; the same command goes on from there.", err=True, fg="yellow"
        )
        sys.exit(EXIT_INTERRUPTED)
    except PODistillError as error:
        if debug:
            raise
        click.secho(f"Error: {error.problem}", err=True, fg="red")
        click.echo(f"  {error.fix}", err=True)
        sys.exit(EXIT_PROBLEM)
    except BrokenPipeError:
        sys.exit(EXIT_PROBLEM)
    except OSError as error:
        if debug:
            raise
        click.secho(f"Error: {error}", err=True, fg="red")
        click.echo(
            "  Look at the path and the disk, then run the same command again; --debug shows where it was.", err=True
        )
        sys.exit(EXIT_PROBLEM)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: in-flight work is drained, partial files vanish."""
    import signal

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- shared options -----------------------------------------------------------------------------


def _json_option(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


def _role_options(command: _F) -> _F:
    for option in (
        click.option(
            "--prompt", "prompt_path", type=click.Path(path_type=Path), help="File with another system prompt."
        ),
        click.option("--contract", help="Prompt contract of the role.  [default: the role's first]"),
        click.option("--role", default="product_owner", show_default=True, help="Role to distil."),
    ):
        command = option(command)
    return command


def _open_role(role: str, contract: str | None, prompt_path: Path | None) -> Any:
    from po_distill.artifacts import read_text
    from po_distill.plugins import load

    return load("roles", role)(contract=contract, prompt=read_text(prompt_path) if prompt_path else None)


def _print(record: BaseModel | dict[str, Any], as_json: bool, show: Callable[[Any], None] | None = None) -> None:
    """A result: as one JSON object, or as `show` puts it for people."""
    data = record if isinstance(record, dict) else record.model_dump(mode="json")
    if as_json or show is None:
        click.echo(json.dumps(data, indent=None if as_json else 2, ensure_ascii=False))
    else:
        show(record)


# --- the road -----------------------------------------------------------------------------------


@cli.command()
@click.option("--minutes", default=8.0, show_default=True, type=click.FloatRange(min=0.1), help="Time to train in.")
@click.option("--fresh", is_flag=True, help="Start over: forget what earlier runs finished.")
@_json_option
def quickstart(minutes: float, fresh: bool, as_json: bool) -> None:
    """Walk the whole road offline, in twelve minutes.

    No keys, no GPU: a rule-based stand-in plays the teacher, SmolLM2-135M is the student. A second run goes on where
    the first stopped.
    """
    from po_distill.pipeline import distill
    from po_distill.settings import quickstart_settings

    result = distill(quickstart_settings(minutes), fresh=fresh)
    _tell_distilled(result, as_json)


@cli.command()
@click.argument("settings_file", type=click.Path(path_type=Path))
@click.option("--fresh", is_flag=True, help="Start over: forget what earlier runs finished.")
@_json_option
def run(settings_file: Path, fresh: bool, as_json: bool) -> None:
    """Walk all stages with the settings of one YAML file (examples/run.yaml)."""
    from po_distill.pipeline import distill
    from po_distill.settings import read_settings

    result = distill(read_settings(settings_file), fresh=fresh)
    _tell_distilled(result, as_json)


@cli.command()
@click.option("--count", default=228, show_default=True, type=click.IntRange(min=1), help="How many concepts.")
@click.option("--seed", default=7, show_default=True, help="Equal seeds make equal concepts.")
@click.option(
    "--output", "--output-path", "output", default=_CONCEPTS, show_default=True, type=click.Path(path_type=Path)
)
@click.option(
    "--vary", "--input-path", "vary", type=click.Path(path_type=Path), help="JSONL of concepts to vary up to --count."
)
@click.option("--role", default="product_owner", show_default=True, help="Role to make concepts for.")
@_json_option
def concepts(count: int, seed: int, output: Path, vary: Path | None, role: str, as_json: bool) -> None:
    """Make concepts with planted truth, or vary given ones."""
    from collections import Counter

    from po_distill.artifacts import write_jsonl
    from po_distill.reporting import console
    from po_distill.source_rows import read_concepts

    opened = _open_role(role, None, None)
    made = (
        opened.vary_concepts(read_concepts(vary, opened), count, seed)
        if vary
        else opened.generate_concepts(count, seed)
    )
    write_jsonl(output, made)
    labels = Counter(concept.planted_label or "unknown" for concept in made)
    found = {"concepts": len(made), "labels": dict(sorted(labels.items())), "path": str(output)}
    _print(found, as_json, lambda _: console.tell_counts(f"{len(made)} concepts in {output}", labels))


@cli.command()
@click.option(
    "--input", "--input-path", "input_path", default=_CONCEPTS, show_default=True, type=click.Path(path_type=Path),
    help="JSONL of concepts, or of recorded answers in any of the accepted forms.",
)  # fmt: skip
@click.option(
    "--output", "--output-path", "output", default=_DATASET, show_default=True, type=click.Path(path_type=Path)
)
@click.option("--provider", default="offline", show_default=True, help="Who answers; `po-distill plugins` lists them.")
@click.option("--model", help="Model of the provider.")
@click.option("--base-url", help="Address of the provider.")
@click.option("--batch-size", default=20, show_default=True, type=click.IntRange(min=1), help="Calls in flight.")
@click.option(
    "--min-score", default=0.85, show_default=True, type=click.FloatRange(0, 1), help="Least metric of a row."
)
@click.option("--max-records", type=click.IntRange(min=1), help="Read only so many rows of the input.")
@_role_options
@_json_option
def dataset(
    input_path: Path, output: Path, provider: str, model: str | None, base_url: str | None, batch_size: int,
    min_score: float, max_records: int | None, role: str, contract: str | None, prompt_path: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Let a teacher answer concepts, and build the gated dataset.

    Where the input holds answers already, no teacher is asked: they are scored again and gated.
    """
    from po_distill.artifacts import read_records
    from po_distill.records import Completion
    from po_distill.reporting import console
    from po_distill.source_rows import has_answers, read_concepts
    from po_distill.stages.dataset_builder import DatasetBuilder, beside
    from po_distill.stages.teacher import Teacher

    opened = _open_role(role, contract, prompt_path)
    builder = DatasetBuilder(opened, min_score=min_score)
    if has_answers(input_path, opened):
        built = builder.build_from(input_path, output, most=max_records)
    else:
        asked = read_concepts(input_path, opened, most=max_records)
        teacher = Teacher(
            opened, provider=provider, model=model, base_url=base_url, batch_size=batch_size, min_score=min_score
        )
        completions = beside(output, "completions.jsonl")
        teacher.write(asked, completions)
        built = builder.build(read_records(completions, Completion), output)
    _print(built, as_json, lambda _: console.tell_dataset(built))


@cli.command()
@click.option(
    "--data", "--data-path", "data", default=_DATASET, show_default=True, type=click.Path(path_type=Path),
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
@click.option("--quantization-aware", type=click.Choice(["q4_0"]), help="Train against weights rounded as they ship.")
@click.option("--launcher", default="local", show_default=True, help="Where the run runs.")
@_json_option
def train(
    data: Path, base: str, output: Path | None, rank: int, alpha: float, dropout: float, epochs: float, batch: int,
    lr: float, max_seq_len: int, max_samples: int | None, max_steps: int | None, minutes: float | None, seed: int,
    quantization_aware: Any, launcher: str, as_json: bool,
) -> None:  # fmt: skip
    """Train a LoRA adapter on a dataset."""
    from po_distill.artifacts import next_version
    from po_distill.records import LoRASettings
    from po_distill.reporting import console
    from po_distill.stages.lora_trainer import LoRATrainer

    folder = output or Path(_MODELS) / next_version(_MODELS, "po_student")
    trainer = LoRATrainer(
        base=base, lora=LoRASettings(rank=rank, alpha=alpha, dropout=dropout), epochs=epochs, batch=batch,
        learning_rate=lr, max_seq_len=max_seq_len, max_samples=max_samples, max_steps=max_steps, minutes=minutes,
        seed=seed, quantization_aware=quantization_aware, launcher=launcher,
    )  # fmt: skip
    adapter = trainer.train(data, folder, log_path=Path("logs/distillation") / f"train_{folder.name}.jsonl")
    _print(
        adapter,
        as_json,
        lambda _: console.tell_next(f"Adapter: {adapter.path}", f"po-distill merge --adapter {adapter.path}"),
    )


@cli.command()
@click.option(
    "--adapter", "--adapter-path", "adapter", required=True, type=click.Path(path_type=Path), help="Adapter folder."
)
@click.option("--base", "--base-model", "base", help="Name, folder or hub id.  [default: the adapter's own]")
@click.option(
    "--output",
    "--output-dir",
    "output",
    type=click.Path(path_type=Path),
    help="Version folder.  [default: the adapter's]",
)
@_json_option
def merge(adapter: Path, base: str | None, output: Path | None, as_json: bool) -> None:
    """Merge an adapter into its base: FP16 safetensors."""
    from po_distill.reporting import console
    from po_distill.stages.merger import Merger

    merged = Merger().merge(adapter, output or adapter.resolve().parent, base=base)
    _print(
        merged,
        as_json,
        lambda _: console.tell_next(f"Merged model: {merged.path}", f"po-distill package --model {merged.path}"),
    )


@cli.command()
@click.option(
    "--model", "--model-path", "model", required=True, type=click.Path(path_type=Path), help="Merged model's folder."
)
@click.option("--name", help="Name of the Ollama model.  [default: the folder's]")
@click.option(
    "--quant", default="q4_0", show_default=True, type=click.Choice(["q4_0", "q8_0", "f16"], case_sensitive=False)
)
@click.option(
    "--output", "--output-dir", "output", type=click.Path(path_type=Path), help="Folder.  [default: the model's]"
)
@_json_option
def package(model: Path, name: str | None, quant: str, output: Path | None, as_json: bool) -> None:
    """Write the GGUF and the Modelfile for a merged model."""
    from po_distill.reporting import console
    from po_distill.stages.packager import Packager

    quantization: Any = quant.lower()
    made = Packager(name=name or model.resolve().name.replace("_", "-"), quantization=quantization).package(
        model, output
    )
    _print(
        made,
        as_json,
        lambda _: console.tell_next(f"GGUF: {made.gguf.path}\nModelfile: {made.modelfile_path}", made.create_command),
    )


@cli.command()
@click.option("--model", "--student", "model", required=True, help="Student: a GGUF, or a version folder with one.")
@click.option("--base", "--base-model", "base", help="Base model's GGUF, to hold the student against.")
@click.option(
    "--data", "--data-path", "data", default="artifacts/distillation/po_teacher_dataset.test.jsonl", show_default=True,
    type=click.Path(path_type=Path), help="JSONL of held-out examples or concepts.",
)  # fmt: skip
@click.option(
    "--teacher", "teacher_path", type=click.Path(path_type=Path), help="JSONL of the teacher's recorded answers."
)
@click.option(
    "--train-data",
    "train_path",
    type=click.Path(path_type=Path),
    help="Training rows; a held-out concept in them stops the run.",
)
@click.option(
    "--subset",
    "--max-samples",
    "subset",
    type=click.IntRange(min=1),
    help="So many cases, equally many of each planted label.",
)
@click.option("--provider", default="llama_cpp", show_default=True, help="Runtime of student and base.")
@click.option("--max-tokens", default=4096, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
@click.option("--concurrency", default=1, show_default=True, type=click.IntRange(min=1), help="Calls at a time.")
@click.option("--report", default="docs/po_distillation_report.md", show_default=True, type=click.Path(path_type=Path))
@click.option("--gate", is_flag=True, help=f"Exit with {EXIT_NOT_PASSED} where the verdict is no.")
@_role_options
@_json_option
def evaluate(
    model: str, base: str | None, data: Path, teacher_path: Path | None, train_path: Path | None, subset: int | None,
    provider: str, max_tokens: int, concurrency: int, report: Path, gate: bool, role: str, contract: str | None,
    prompt_path: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Hold a student against its base and its teacher on held-out concepts."""
    from po_distill.pipeline import evaluate_models
    from po_distill.reporting.summary import show_summary, summary_object

    found = evaluate_models(
        _open_role(role, contract, prompt_path), data, student=model, base=base, teacher_path=teacher_path,
        train_path=train_path, subset=subset, provider=provider, max_tokens=max_tokens, concurrency=concurrency,
        report_path=report,
    )  # fmt: skip
    _print(summary_object(found, found.artifacts), as_json, lambda _: show_summary(found, found.artifacts))
    if gate and not found.verdict.passed:
        raise click.exceptions.Exit(EXIT_NOT_PASSED)


# --- around the road ----------------------------------------------------------------------------


@cli.command()
@_json_option
def plugins(as_json: bool) -> None:
    """List providers, roles, base models and launchers, and the packages they come from."""
    from po_distill.plugins import list_plugins
    from po_distill.reporting import console

    found = list_plugins()
    rows = [info.model_dump() for info in found]
    _print({"plugins": rows}, as_json, lambda _: console.tell_plugins(found))


@cli.command()
@_json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and what to install for the rest."""
    from po_distill.machine import examine
    from po_distill.reporting import console

    checks = examine()
    rows = [check._asdict() for check in checks]
    _print({"checks": rows, "ok": all(c.ok for c in checks)}, as_json, lambda _: console.tell_checks(checks))


def _tell_distilled(result: DistillResult, as_json: bool) -> None:
    from po_distill.reporting.summary import show_summary, summary_object

    following = f"po-distill evaluate --model {result.folder} --gate"
    _print(
        summary_object(result.report, result.artifacts),
        as_json,
        lambda _: show_summary(result.report, result.artifacts, following),
    )
