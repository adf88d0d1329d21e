"""The `dropforge` command: beside the arrows, it asks the daemon by request files and reads what rooms wrote.

Reads    argv                            Writes  stdout (answers), stderr (errors and logs)
Errors   a DropforgeError becomes one explained error and the exit code its class names; usage errors are 2
Effects  imports a sub-command's module only when that command is asked for, so --help needs no other room
"""

import atexit
import gc
import importlib
import json
import os
import sys
from pathlib import Path

import click

from core.atomic import storage_error
from core.commands.invocation import common_options
from core.errors import DropforgeError, UsageError
from core.paths import display_name

VERSION = "0.1.0"
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C

# verb -> (module in core.commands, what the list of commands says)
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("root", "Make a new root."),
    "doctor": ("doctor", "Check the machine and the root."),
    "config": ("root", "Show or check the settings."),
    "up": ("processes", "Run everything until Ctrl-C."),
    "daemon": ("processes", "Run the daemon alone."),
    "monitor": ("processes", "Run the monitor alone."),
    "serve": ("processes", "Run the inference server alone."),
    "submit": ("files", "Copy files into the inbox."),
    "check": ("files", "Run the gates over files without moving them."),
    "status": ("state", "Say what is going on."),
    "jobs": ("state", "List dropped files and what became of them."),
    "retry": ("orders", "Queue a failed or held job again."),
    "cancel": ("orders", "Take a job out; its training is undone."),
    "logs": ("state", "Show the logs."),
    "pause": ("orders", "Pause training."),
    "resume": ("orders", "Go on after a pause."),
    "skip": ("orders", "Give the active job up."),
    "stop": ("orders", "Commit and end the daemon."),
    "checkpoint": ("orders", "Commit a checkpoint now."),
    "checkpoints": ("models", "List what is committed."),
    "leaderboard": ("models", "Show what the judge decided."),
    "compare": ("evaluation", "Name the better of two checkpoints."),
    "evaluate": ("evaluation", "Have a checkpoint judged."),
    "suite": ("evaluation", "Add evaluation suites."),
    "promote": ("orders", "Publish a checkpoint."),
    "rollback": ("orders", "Serve the previous checkpoint again."),
    "rewind": ("orders", "Take training back to a checkpoint."),
    "pin": ("orders", "Keep a checkpoint."),
    "export": ("export", "Write a checkpoint as a model folder."),
    "ask": ("ask", "Ask the served model."),
    "report": ("report", "Say what happened since a time."),
    "verify": ("audit", "Recount and re-hash everything."),
    "lineage": ("models", "Trace a checkpoint to its files, or a file to its checkpoints."),
}


# A command makes hardly any garbage of the kind that is looked for: 10 ms less while it starts, 20 when it is over.
gc.set_threshold(50_000, 20, 20)
atexit.register(gc.freeze)
# Nor does it multiply matrices with numpy, whose library would start a thread for each core as soon as it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class LazyGroup(click.Group):
    """A group whose commands live in `core.commands.<module>` as `<name>_command` and are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"core.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="dropforge")
@common_options
def cli() -> None:
    """Drop a file into inbox/: it is checked, trained on, judged and, when better, served."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the contract's exit code; an explained error never becomes a traceback."""
    given = sys.argv[1:] if argv is None else argv
    context_json = "--json" in given
    try:
        result = cli.main(args=argv, prog_name="dropforge", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except DropforgeError as error:
        return _explain(error, context_json)
    except UnicodeEncodeError:
        words = [display_name(w) for w in given if w.encode(errors="replace") != os.fsencode(w)]
        if not words:
            raise
        return _explain(UsageError(f"not UTF-8: {', '.join(words)}", fix="write it in UTF-8"), context_json)
    except OSError as error:
        if error.filename is None:  # no folder or file that a person could mend
            raise
        return _explain(storage_error(error, Path(os.fsdecode(error.filename))), context_json)


def _explain(error: DropforgeError, as_json: bool) -> int:
    """Say what went wrong, names of strangers escaped; returns the exit code."""
    if as_json:
        click.echo(json.dumps({"error": error.as_dict()}))
    place = f"{error.where}: " if error.where else ""
    click.echo(f"error: {display_name(place + error.message)}", err=True)
    if error.fix:
        click.echo(f"  fix: {display_name(error.fix)}", err=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
