"""The command line: one file per verb.

To add a verb, write `clearstate/cli/<verb>.py` with a function `run(...)` and add it to `VERBS` below. The signature of
`run` is the command line (Typer reads its annotations), and its docstring is the help text. Three rules apply to every
verb:

* Import torch, and every module that imports it, inside `run`: `--help` must appear within half a second.
* Raise `UsageError` for wrong use (exit code 2) and `CommandError` for failed work (exit code 1). Both print one line
  with what arrived, what was expected and the remedy. `main` turns other exceptions, such as `OSError`, into one line.
* Print results to stdout. Print progress, notes and errors to stderr.

Verbs that read and write audio files share `inputs.plan` (what to read and where to write) and `batch.run_batch`
(progress, worker processes, failures, Ctrl-C).
"""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from clearstate import __version__
from clearstate.cli import (
    app as web_app,
)
from clearstate.cli import (
    convert,
    doctor,
    enhance,
    export,
    extend,
    inspect,
    leaderboard,
    live,
    models,
    plot,
    restore,
    score,
    separate,
    serve,
    stream,
    train,
)
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
    "live": live.run,
    "app": web_app.run,
    "serve": serve.run,
    "inspect": inspect.run,
    "restore": restore.run,
    "plot": plot.run,
    "train": train.run,
    "score": score.run,
    "leaderboard": leaderboard.run,
    "convert": convert.run,
    "export": export.run,
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option(VERBOSE, help="Show the messages of the audio libraries. Works after the verb, too.")
    ] = False,
) -> None:
    """Clean up speech with state-space models, in real time on a CPU.

    `clearstate enhance talk.wav` removes noise and writes `talk.clear.wav` next to the input. The output has the same
    length, sample rate and channels.

    `clearstate VERB --help` shows the options of a verb. `clearstate doctor` checks the installation.
    """
    if verbose:
        os.environ["CLEARSTATE_VERBOSE"] = "1"  # worker processes inherit the variable


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something failed, 2 wrong use, 130 interrupted."""
    gc.set_threshold(100_000, 20, 20)  # by default, loading PyTorch collects garbage for some 0.3 s and finds none
    occupy_closed_streams()
    unwind_when_terminated()
    words = list(home_expanded(sys.argv[1:] if argv is None else argv))
    if VERBOSE in words[: words.index("--") if "--" in words else None]:  # also after the verb
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
    except BrokenPipeError:  # the program that reads our stdout has exited, such as `| head`
        abandon_stdout()
        sys.exit(1)
    except Exception as error:
        fail(explain(error), 1)
