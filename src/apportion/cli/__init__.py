"""The command line: argv -> one frozen config -> one call. Errors are one line and a remedy, no traceback."""

import sys

import typer

from apportion.cli.base import app
from apportion.core.errors import ApportionError


def main() -> None:
    """Entry point of the `apportion` command."""
    from apportion.cli import bits, compare, demo, route, router  # noqa: F401  each module adds its commands to app

    try:
        app(standalone_mode=False)
    except ApportionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "interrupted: finished work is saved; run the same command with --resume to go on",
            file=sys.stderr,
        )
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        show = getattr(error, "show", None)  # click's usage errors know how to print themselves
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
