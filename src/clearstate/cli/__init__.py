"""The command line: one file a verb, `clearstate VERB --help` teaches it.

To add a verb: write `clearstate/cli/<verb>.py` with a function `run(...)` whose signature is the command line (Typer
reads the annotations) and whose docstring is the help, then name it in `VERBS` below. Three rules keep the verbs alike:

* Import torch, and anything that imports it, inside `run`: `--help` must come within half a second.
* Wrong use raises `UsageError` (exit code 2), work that failed raises `CommandError` (exit code 1); both print one line
  that names what arrived, what was expected and the remedy. `ValueError` and `OSError` from below become such a line.
* What the user asked for goes to stdout; progress, notes and errors go to stderr.

Verbs that turn files into files share `inputs.plan` (what to read and where to write) and `batch.run_batch` (progress,
worker processes, failures at the end, Ctrl-C).
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from clearstate import __version__
from clearstate.cli import convert, doctor, enhance, extend, leaderboard, models, plot, score, separate, stream, train
from clearstate.cli.signals import unwind_when_terminated
from clearstate.cli.terminal import (
    CommandError,
    abandon_stdout,
    explain,
    fail,
    home_expanded,
    occupy_closed_streams,
    print_anything,
    show_log,
)

VERBS: dict[str, Callable[..., None]] = {
    "enhance": enhance.run,
    "separate": separate.run,
    "extend": extend.run,
    "stream": stream.run,
    "plot": plot.run,
    "train": train.run,
    "score": score.run,
    "leaderboard": leaderboard.run,
    "convert": convert.run,
    "models": models.run,
    "doctor": doctor.run,
}

VERBOSE = "--verbose"

app = typer.Typer(
    name="clearstate",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, verb in VERBS.items():
    app.command(name)(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clearstate {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option(VERBOSE, help="Show what the audio libraries print. May also follow the verb.")
    ] = False,
) -> None:
    """Clear up speech with state-space models, in real time on a CPU.

    `clearstate enhance talk.wav` writes `talk.clear.wav` beside it: the same length, rate and channels, less noise.

    `clearstate enhance --help` shows the rest; `clearstate doctor` says whether everything is in place.
    """
    if verbose:
        os.environ["CLEARSTATE_VERBOSE"] = "1"  # worker processes inherit it


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0 done, 1 something failed, 2 wrong use, 130 interrupted."""
    occupy_closed_streams()
    unwind_when_terminated()
    words = list(home_expanded(sys.argv[1:] if argv is None else argv))
    if VERBOSE in words[: words.index("--") if "--" in words else None]:  # wherever it is
        words.remove(VERBOSE)
        words.insert(0, VERBOSE)
    print_anything()
    show_log()
    try:
        app(args=words, prog_name="clearstate")
    except CommandError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our stdout left, as `| head` does
        abandon_stdout()
        sys.exit(1)
    except Exception as error:
        fail(explain(error), 1)
