"""The command line. One module per verb, imported only when that verb is used."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from hybrid import __version__
from hybrid.cli.output import printable
from hybrid.errors import EXIT_BUG, EXIT_INTERRUPTED, HybridError, StorageFullError

# verb -> (module, one line of help). The help stands here so that `hybrid --help` imports no verb.
VERBS = {
    "mount": ("hybrid.cli.mount", "Mount an image; its blocks are fetched when they are read."),
    "umount": ("hybrid.cli.umount", "Take a mount away, with its loop device and server."),
    "snapshot": ("hybrid.cli.snapshot", "Seal the changes of a writable mount; go on above them."),
    "list": ("hybrid.cli.list", "List the mounts of this user."),
    "resume": ("hybrid.cli.resume", "Give a mount whose server died a new one (mode tcmu)."),
    "doctor": ("hybrid.cli.doctor", "Tell which modes work here, and what is missing."),
    "gc": ("hybrid.cli.gc", "Remove what dead servers have left behind."),
    "inspect": ("hybrid.cli.inspect", "Show what an image is made of."),
    "commit": ("hybrid.cli.commit", "Make a layer, or an image, of what was written to a mount."),
    "convert": ("hybrid.cli.convert", "Make an overlaybd image of a plain OCI image."),
    "build": ("hybrid.cli.build", "Make an overlaybd image of a directory or a tar file."),
    "copy": ("hybrid.cli.copy", "Copy an image between registries, OCI layouts and archives."),
    "push": ("hybrid.cli.push", "Copy an image on disk to a registry."),
    "pull": ("hybrid.cli.pull", "Copy an image from a registry to disk."),
    "zfile": ("hybrid.cli.zfile", "Work on one ZFile: info, verify, pack, unpack."),
    "layer": ("hybrid.cli.layer", "Work on layers: info, dump, verify, merge, import, commit, ..."),
}

logger = logging.getLogger("hybrid")


def _be_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        set_up_logging(verbose=True)


def _accept_verbose(command: click.Command) -> None:
    """Let ``-v`` stand behind a verb too, where people type it."""
    if isinstance(command, LazyGroup):
        return  # it sees to its verbs itself, when they are imported
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

    def __init__(
        self, *arguments: Any, verbs: Mapping[str, tuple[str, str]] = VERBS, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        command: click.Command = importlib.import_module(self.verbs[cmd_name][0]).command
        _accept_verbose(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in self.verbs.items()])


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
    _prepare_streams()
    arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        code = cli.main(arguments, prog_name="hybrid", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        _die(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _die("interrupted", EXIT_INTERRUPTED)
    except HybridError as error:
        _die(str(error), error.exit_code)
    except OSError as error:
        # All other files are handled where they are used.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - else Python's end fails once more
            _die(f"cannot write to stdout: {error.strerror}", StorageFullError.exit_code)
        _die(_bug(error), EXIT_BUG)
    except Exception as error:
        _die(_bug(error), EXIT_BUG)


def _prepare_streams() -> None:
    """Make stdin, stdout and stderr usable, whatever the caller left open.

    A closed one would let the next file that is opened take its number, and its output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _bug(error: Exception) -> str:
    return (
        f"internal error: {type(error).__name__}: {error} "
        "(please report it, with the output of the same command and -v)"
    )


def _die(message: str, code: int) -> NoReturn:
    """One line, and with -v the traceback of the exception that is being handled."""
    line = "; ".join(printable(part) for part in message.splitlines() if part.strip())
    if logger.isEnabledFor(logging.DEBUG):
        logger.exception("%s", line)
    else:
        print(f"hybrid: {line}", file=sys.stderr)
    sys.exit(code)
