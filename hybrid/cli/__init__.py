"""The command line. One module per verb, imported only when that verb is used."""

from __future__ import annotations

import importlib
import logging
import sys

import click

from hybrid import __version__
from hybrid.errors import EXIT_BUG, EXIT_INTERRUPTED, HybridError

# verb -> (module, one line of help). The help stands here so that `hybrid --help` imports no verb.
VERBS = {
    "mount": ("hybrid.cli.mount", "Mount an image; its blocks are fetched when they are read."),
    "umount": ("hybrid.cli.umount", "Take a mount away, with its loop device and server."),
    "list": ("hybrid.cli.list", "List the mounts of this user."),
    "inspect": ("hybrid.cli.inspect", "Show what an image is made of."),
    "zfile": ("hybrid.cli.zfile", "Look at one ZFile: info, verify, unpack."),
    "layer": ("hybrid.cli.layer", "Look at layers: info, dump."),
}

logger = logging.getLogger("hybrid")


def _be_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        set_up_logging(verbose=True)


def _accept_verbose(command: click.Command) -> None:
    """Let ``-v`` stand behind a verb too, where people type it."""
    if isinstance(command, click.Group):
        for nested in command.commands.values():
            _accept_verbose(nested)
    elif all(parameter.name != "verbose" for parameter in command.params):
        command.params.append(
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_be_verbose,
                help="Say more; show tracebacks of errors.",
            )
        )


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[cmd_name][0]).command
        _accept_verbose(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


def set_up_logging(verbose: bool) -> None:
    """Notices (INFO) go to a terminal only; warnings always; everything with ``-v``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("hybrid: %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    if verbose:
        logger.setLevel(logging.DEBUG)
    else:
        logger.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)


@click.group(
    cls=LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("-v", "--verbose", is_flag=True, help="Say more; show tracebacks of errors.")
@click.version_option(__version__, prog_name="hybrid")
def cli(verbose: bool) -> None:
    """Mount overlaybd container images lazily, on every Linux machine."""
    set_up_logging(verbose)


def main(argv: list[str] | None = None) -> None:
    """Entry point: every failure becomes one line on stderr and a documented exit code."""
    arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        code = cli.main(arguments, prog_name="hybrid", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        print(f"hybrid: {error.format_message()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("hybrid: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as in `hybrid list | head -1`.
        sys.stderr.close()
        sys.exit(EXIT_INTERRUPTED)
    except HybridError as error:
        if logger.isEnabledFor(logging.DEBUG):
            logger.exception("%s", error)
        else:
            print(f"hybrid: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if logger.isEnabledFor(logging.DEBUG):
            logger.exception("internal error")
        else:
            print(
                f"hybrid: internal error: {type(error).__name__}: {error} "
                "(please report it, with the output of the same command and -v)",
                file=sys.stderr,
            )
        sys.exit(EXIT_BUG)
