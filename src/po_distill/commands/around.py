"""The commands around the road: what is registered, what this machine can do."""

from __future__ import annotations

import click

from po_distill.commands.options import json_option, print_result


@click.command()
@json_option
def plugins(as_json: bool) -> None:
    """List providers, roles, base models and launchers, and the packages they come from."""
    from po_distill.plugins import list_plugins
    from po_distill.reporting import console

    found = list_plugins()
    rows = [info.model_dump() for info in found]
    print_result({"plugins": rows}, as_json, lambda _: console.tell_plugins(found))


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and what to install for the rest."""
    from po_distill.machine import examine
    from po_distill.reporting import console

    checks = examine()
    rows = [check._asdict() for check in checks]
    print_result({"checks": rows, "ok": all(c.ok for c in checks)}, as_json, lambda _: console.tell_checks(checks))
