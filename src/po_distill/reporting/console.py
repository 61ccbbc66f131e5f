"""Results of the commands as plain lines for people, on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from po_distill.records import CallPlan, Dataset, MergedModel, PluginInfo, TeacherSummary
from po_distill.reporting.foreign_text import for_terminal


def tell_counts(title: str, counts: Mapping[str, int]) -> None:
    """Counts under a title, a line each."""
    click.echo(title)
    for name, count in sorted(counts.items()):
        click.echo(f"  {name:<24}{count:>6}")


def tell_next(made: str, command: str) -> None:
    """What was made, and the command to type next."""
    click.echo(made)
    click.echo(f"Next: {click.style(command, bold=True)}")


def tell_dataset(built: Dataset) -> None:
    """What went into a dataset, what was rejected and why."""
    accepted = sum(built.counts.values())
    tell_counts(f"{built.inputs} answers: {accepted} accepted, {built.inputs - accepted} rejected", built.rejected)
    tell_counts("Accepted by split", {str(name): count for name, count in built.counts.items()})
    tell_counts("Accepted by verdict", built.labels)
    if built.missing:
        click.secho(f"Short of the target: {_listed(built.missing)}", fg="yellow")
    if built.rejected:
        click.echo(f"Each rejection with its reason: {built.rejected_path}")
    for shape, path in built.also.items():
        click.echo(f"{shape}: {path}")
    click.echo(f"Dataset: {built.paths['train']}")
    check = f"po-distill dataset check {built.paths['train']}"
    tell_next(
        f"Is it fit for training? {click.style(check, bold=True)}", f"po-distill train --data {built.paths['train']}"
    )


def tell_merge(merged: MergedModel) -> None:
    """What a merge wrote and how it was proven."""
    click.echo(f"{merged.merged_tensors} of {merged.tensors} tensors changed, in {merged.dtype}")
    if (proof := merged.proof) is not None:
        click.echo(
            f"{proof.adapter_keys} adapter tensors, all of them used; {proof.sampled_values:,} values of "
            f"{len(proof.sampled_tensors)} tensors computed again: at most {proof.largest_error_ulp:.3f} steps off"
            + (f"; {proof.gguf_values:,} found again in the GGUF" if proof.gguf_values else "")
        )
    for parity in merged.parity:
        click.echo(
            f"{parity.first} / {parity.second}: same first token at {parity.same_top:.1%} of {parity.positions} "
            f"positions, logprobs {parity.mean_logprob_difference:.4f} apart"
        )
    for name in merged.weights:
        click.echo(f"Weights: {merged.path}/{name}")
    if merged.gguf is not None:
        click.echo(f"GGUF: {merged.gguf.path} ({merged.gguf.size_bytes / 1e9:.2f} GB)")
        for note in merged.gguf.notes:
            click.secho(note, fg="yellow")
    tell_next(f"Merged model: {merged.path}", f"po-distill package --model {merged.path}")


def tell_teacher(summary: TeacherSummary, budget_usd: float | None) -> None:
    """What the teacher was asked, what was accepted, what was not and why, and what it cost."""
    rejected = sum(summary.rejected.values())
    tell_counts(
        f"{summary.asked} concepts: {summary.accepted} accepted, {rejected} rejected",
        {**{f"accepted: {name}": count for name, count in summary.labels.items()}, **summary.rejected},
    )
    usage = summary.usage
    click.echo(
        f"{summary.sends} calls, {summary.from_journal} answers from the journal; {usage.prompt_tokens:,} tokens in, "
        f"{usage.completion_tokens:,} out, {usage.thinking_tokens:,} of them thinking"
    )
    budget = f" of ${budget_usd:g}" if budget_usd is not None else ""
    click.echo(f"${usage.cost_usd:.4f} in this run, ${summary.charged_usd:.4f}{budget} in all runs of the journal")
    if summary.in_doubt:
        click.secho(f"{summary.in_doubt} calls of a killed run were in doubt, and count at full price", fg="yellow")
    for name, outcome in summary.watched.items():
        click.echo(f"watched {name}: {outcome}")
    if summary.missing:
        click.secho(f"Short of the target: {_listed(summary.missing)}", fg="yellow")
    if summary.stopped:
        click.secho("Stopped at the budget. Raise --budget-usd and run the same command again.", fg="yellow")


def tell_plan(plan: CallPlan) -> None:
    """What a run would ask and cost."""
    click.echo(
        f"{plan.concepts:,} concepts: {plan.to_ask:,} to ask, {plan.answered:,} in the journal, "
        f"{plan.unusable:,} unusable"
    )
    click.echo(f"about {plan.prompt_tokens:,} tokens in, {plan.completion_tokens:,} out")
    if plan.cost_usd is None:
        click.secho(f"No price of {plan.model} is known: add one with --models-file.", fg="yellow")
        return
    click.echo(
        f"about ${plan.cost_usd:.2f}, at most ${plan.worst_cost_usd:.2f} with every answer at its limit and asked for "
        f"{plan.regenerate} times more; spent before: ${plan.charged_usd:.4f}"
    )
    for price in plan.prices:
        click.echo(f"list price {price}")


def tell_costs(found: Mapping[str, Any]) -> None:
    """What was spent, by model, by day and by how the sends ended."""
    for title, table in (("By model", "by_model"), ("By day", "by_day"), ("By end", "by_status")):
        click.echo(title)
        for name, place in found[table].items():
            doubt = f", {place['doubtful']} in doubt for ${place['doubtful_usd']:.4f}" if place["doubtful"] else ""
            click.echo(f"  {name:<40}{place['sends']:>8,} sends  ${place['usd']:.6f}{doubt}")
    click.echo(f"${found['usd']:.6f} in {found['sends']:,} sends; in doubt: ${found['doubtful_usd']:.6f}")


def tell_problems(path: str, problems: Sequence[str]) -> None:
    """What is wrong with a journal."""
    if not problems:
        click.secho(f"{path} is sound.", fg="green")
    for problem in problems:
        click.secho(f"{path}: {problem}", fg="red")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def tell_plugins(plugins: Sequence[PluginInfo]) -> None:
    """Plugins, a line each, with the package that brought them."""
    for info in plugins:
        click.echo(
            f"{info.group:<13}{info.name:<24}{info.package} {info.version}  {click.style(info.target, dim=True)}"
        )


def tell_checked_plugins(checked: Iterable[tuple[PluginInfo, str | None]]) -> None:
    """Plugins that were loaded, a line each, and below it what is wrong with it."""
    for info, problem in checked:
        mark = click.style("ok  ", fg="green") if problem is None else click.style("no  ", fg="red")
        click.echo(f"{mark}{info.group:<13}{info.name:<24}{info.package} {info.version}")
        if problem is not None:
            click.echo(f"    {for_terminal(problem, longest=None)}")


def tell_checks(checks: Iterable[tuple[str, bool, str, str]]) -> None:
    """Checks of the machine as (name, ok, found, remedy): green is there, yellow is missing."""
    for name, ok, found, remedy in checks:
        mark = click.style("ok  ", fg="green") if ok else click.style("no  ", fg="yellow")
        click.echo(f"{mark}{name:<22}{found}")
        if not ok:
            click.echo(f"    {'':<22}{remedy}")
