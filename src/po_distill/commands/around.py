"""The commands around the road: what is registered, what this machine can do."""

from __future__ import annotations

import click

from po_distill.commands.options import EXIT_NOT_PASSED, json_option, print_result


@click.command()
@click.option("--check", is_flag=True, help=f"Load each, and exit with {EXIT_NOT_PASSED} where one does not load.")
@json_option
def plugins(check: bool, as_json: bool) -> None:
    """List providers, roles, base models and launchers, and the packages they come from."""
    from po_distill.plugins import check_plugins, list_plugins
    from po_distill.reporting import console

    if not check:
        found = list_plugins()
        rows = [info.model_dump() for info in found]
        print_result({"plugins": rows}, as_json, lambda _: console.tell_plugins(found))
        return
    checked = check_plugins()
    rows = [{**info.model_dump(), "problem": problem} for info, problem in checked]
    print_result({"plugins": rows}, as_json, lambda _: console.tell_checked_plugins(checked))
    if any(problem for _, problem in checked):
        raise click.exceptions.Exit(EXIT_NOT_PASSED)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and what to install for the rest."""
    from po_distill.machine import examine
    from po_distill.reporting import console

    checks = examine()
    rows = [check._asdict() for check in checks]
    print_result({"checks": rows, "ok": all(c.ok for c in checks)}, as_json, lambda _: console.tell_checks(checks))
