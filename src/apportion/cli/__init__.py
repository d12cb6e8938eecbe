"""The command line: argv -> one frozen config -> one call. Errors are one line and a remedy, no traceback."""

import sys

import typer

from apportion.cli.base import app
from apportion.core.device import is_out_of_memory
from apportion.core.errors import ApportionError, InputError, first_line
from apportion.core.lines import holds_half

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TOLD = 160  # letters of a message
SMALLER = ("--window-tokens", "--batch", "--device")  # what takes less memory, where a command has it


def main() -> None:
    """Entry point of the `apportion` command."""
    # each module adds its commands to app
    from apportion.cli import bits, compare, demo, divergence, route, router, serve  # noqa: F401

    try:
        require_utf8(sys.argv[1:])
        code = app(standalone_mode=False)  # outside of standalone mode an exit code is returned, Ctrl-C's among them
    except ApportionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        show = getattr(error, "show", None)  # click's usage errors know how to print themselves
        if show is None and is_out_of_memory(error):
            print(f"error: {ran_out(error)}\n  remedy: {after_memory(sys.argv[1:])}", file=sys.stderr)
            sys.exit(1)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
    if code == INTERRUPTED:
        print(f"interrupted: {how_to_go_on(sys.argv[1:])}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def require_utf8(arguments: list[str]) -> None:
    """Refuse bytes that are no UTF-8: no result could name them.

    Raises:
        InputError: naming the first of them, as Python writes it.
    """
    if wrong := [word for word in arguments if holds_half(word)]:
        raise InputError(f"{wrong[0]!a}: is not UTF-8", "rename the file, or give a link of another name")


def ran_out(error: Exception) -> str:
    """Where no step has had less to give up: what torch says of it, at most a line.

    >>> ran_out(MemoryError())
    'memory ran out (MemoryError)'
    >>> ran_out(RuntimeError("CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has a total capacity of ..."))
    'memory ran out (CUDA out of memory. Tried to allocate 48.00 MiB)'
    """
    return f"memory ran out ({'. '.join(first_line(error).split('. ')[:2])[:TOLD]})"


def after_memory(arguments: list[str]) -> str:
    """What to do where memory ran out: what is asked otherwise needs another folder."""
    own = [name for name in SMALLER if name.removeprefix("--").replace("-", "_") in options_of(arguments)]
    other = f"; or use smaller {', '.join(own).replace('--device', '--device cpu')}" if own else ""
    return f"end other programs on the device: {how_to_go_on(arguments)}{other}" + (
        ", into another --out" * ("out" in options_of(arguments) and bool(own))
    )


def options_of(arguments: list[str]) -> set[str]:
    """Names of the options of the command that runs."""
    commands = getattr(typer.main.get_command(app), "commands", {})
    running = next((commands[word] for word in arguments if word in commands), None)
    return {str(option.name) for option in running.params} if running is not None else set()


def how_to_go_on(arguments: list[str]) -> str:
    """What to do after Ctrl-C: not every command can be resumed."""
    options = options_of(arguments)
    if "resume" in options:
        return "finished work is saved; run the same command with --resume to go on"
    return "run the same command again" + (
        "; if it refuses the --out that it left, choose another" * ("out" in options)
    )
