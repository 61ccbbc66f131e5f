"""`po-distill`: the group of commands, and what their errors become. The commands are in `commands/`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator

import click

from po_distill.commands.around import doctor, plugins
from po_distill.commands.evaluation import evaluate
from po_distill.commands.inspect import inspect
from po_distill.commands.integration import promote, promotions, rollback
from po_distill.commands.journal import journal
from po_distill.commands.metric import metric
from po_distill.commands.mipro_time import mipro_time
from po_distill.commands.new import new
from po_distill.commands.options import EXIT_INTERRUPTED, EXIT_PROBLEM
from po_distill.commands.road import quickstart, run
from po_distill.commands.smoke import export, smoke
from po_distill.commands.student import merge, package
from po_distill.commands.teacher import concepts, dataset
from po_distill.commands.training import train
from po_distill.errors import PODistillError


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


for _command in (
    *(quickstart, run),
    *(concepts, dataset, train, merge, package, evaluate),
    *(promote, rollback, promotions, smoke, export),
    mipro_time,
    *(inspect, journal, metric, plugins, new, doctor),
):
    cli.add_command(_command)


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
        again = shlex.join(["po-distill", *ordered])
        click.secho(
            "Interrupted. What was finished is kept; the same command goes on from there:", err=True, fg="yellow"
        )
        click.echo(f"  {again}", err=True)
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
