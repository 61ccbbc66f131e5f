"""The command that says what a weight file is."""

from __future__ import annotations

from pathlib import Path

import click

from po_distill.commands.options import json_option, print_result


@click.command()
@click.argument("file_or_folder", type=click.Path(path_type=Path))
@click.option("--tensors", "all_tensors", is_flag=True, help="A line for each tensor, not for each part.")
@click.option("--template", "only_template", is_flag=True, help="Print the chat template whole, and nothing else.")
@click.option("--no-digest", is_flag=True, help="Compute no SHA-256: only the heads of the files are read.")
@json_option
def inspect(file_or_folder: Path, all_tensors: bool, only_template: bool, no_digest: bool, as_json: bool) -> None:
    """Say what a weight file is: a safetensors file, a checkpoint folder, an adapter folder or a GGUF.

    Architecture, parameters, tensors, types and sizes, metadata, tokenizer and chat template, digests. Nothing in the
    file is run, and a pickle file is not opened. Exit status 1 where the file is broken.
    """
    from po_distill.errors import InputError
    from po_distill.reporting.inspection_text import tell_inspection, template_text
    from po_distill.weights.inspection import inspect_weights

    found = inspect_weights(file_or_folder, digests=not (no_digest or only_template))
    if only_template and not as_json:
        if found.template is None:
            raise InputError(
                f"{file_or_folder} has no chat template.", "Look at what there is: po-distill inspect PATH."
            )
        click.echo(template_text(found.template))
        return
    print_result(found, as_json, lambda _: tell_inspection(found, all_tensors=all_tensors))
