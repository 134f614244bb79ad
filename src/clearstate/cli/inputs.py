"""Turn the inputs on the command line into a list of jobs (file to read, file to write).

Every verb that writes audio files names its outputs by the rules in `plan`.
"""

import glob
import os
import sys
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path

from clearstate.audio import remote
from clearstate.audio.formats import READABLE, WRITABLE, examples
from clearstate.audio.paths import walk, why_no_file
from clearstate.audio.remote import is_remote
from clearstate.audio.streams import STDIO, as_stdio, is_stream
from clearstate.cli.terminal import UsageError

LONGEST_NAME = 255  # bytes of a file name; the limit of common file systems


@dataclass(frozen=True)
class Job:
    """One file to process. `source` may be "-" for stdin, and `target` "-" for stdout."""

    source: str
    target: str
    replace: bool = False  # an existing target is an earlier output of this job
    stamp: str = ""  # changes when the source changes; empty if the file system tells
    size: int = 0  # bytes of the source, where its length is unknown
    seconds: float = 0.0  # of audio, as far as known


@dataclass
class Plan:
    """What to do, and which inputs cannot be done."""

    jobs: list[Job] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)  # (input, reason)


def plan(inputs: list[str], output: str | None, *, tag: str = "clear", overwrite: bool = False) -> Plan:
    """Decide what to read and where to write it.

    * Without `output`, `talk.wav` becomes `talk.clear.wav` in the same folder (`tag` is "clear"); "-" and pipes
      become "-".
    * `output` is a folder if it exists as one, ends in a slash, or there are several inputs. Files keep their names,
      and files found in an input folder keep their subfolders.
    * Otherwise `output` is the file to write.

    Args:
        inputs: files, folders (searched with their subfolders), glob patterns, or "-".
    Returns:
        The jobs, and the inputs that cannot be processed with the reason. The jobs should still run.
    Raises:
        UsageError: if the command line contradicts itself and no work should start.
    """
    if any(map(is_remote, [*inputs, output or ""])):
        return _plan_remote(inputs, output, tag, overwrite)
    inputs = [as_stdio(word, 0) for word in inputs]
    output = output and as_stdio(output, 1)
    if len(inputs) == 1 and is_stream(inputs[0]):
        return _single(inputs[0], output or STDIO, tag, overwrite)
    result = Plan()
    found, several = gather(inputs, output, tag, result)
    if output and not several and not _means_folder(output):
        return _single(str(found[0][0]), output, tag, overwrite) if found else result
    if output == STDIO:
        raise UsageError("'-o -' (stdout) takes one input; give a folder for several inputs")
    if output and (os.path.isfile(output) or Path(output).suffix.lower() in READABLE):
        raise UsageError(f"-o {output} names a file, but there are several inputs; give a folder")

    takers: dict[str, Path] = {}
    itself: UsageError | None = None
    for file, place in found:
        target = Path(output) / _writable(place) if output else _beside(file, tag)
        taker = takers.setdefault(one_name(target), file)
        if taker != file and _same(taker, file):
            continue  # the same file, named twice
        job = Job(str(file), str(target))
        try:
            reason = _clash(taker, file, target) or _refusal(job, overwrite)
        except UsageError as error:
            itself, reason = error, str(error)
        if reason:
            result.failures.append((job.source, reason))
        else:
            result.jobs.append(job)
    if itself and not result.jobs:
        raise itself
    return result


def only_read(inputs: list[str]) -> Plan:
    """Decide what to read, for a verb that writes no audio. The jobs have no target.

    Args:
        inputs: as for `plan`.
    """
    result = Plan()
    if any(map(is_remote, inputs)):
        found = gather_remote(inputs, None, None, result)[0]
        return replace(result, jobs=[replace(job, target="") for job in found])
    inputs = [as_stdio(word, 0) for word in inputs]
    if len(inputs) == 1 and is_stream(inputs[0]):
        return Plan(jobs=[Job(inputs[0], "")])
    result.jobs = [Job(str(file), "") for file, _ in gather(inputs, None, None, result)[0]]
    return result


def gather(
    inputs: list[str], output: str | None, tag: str | None, result: Plan
) -> tuple[list[tuple[Path, Path]], bool]:
    """Find the files that the inputs name, each with its path under an output folder; and whether to expect several.

    In folders, outputs of earlier runs are left out, by `tag`; None keeps them.

    Inputs that are not files are added to the failures of `result`.

    Raises:
        UsageError: if "-" is one of several inputs.
    """
    if STDIO in inputs:
        raise UsageError("'-' (stdin) cannot be combined with other inputs; give it alone")
    found: dict[Path, Path] = {}
    several = len(inputs) > 1
    for word in inputs:
        if os.path.isdir(word):
            if output and len(inputs) > 1 and _same(word, output):
                continue  # from the second run on, the shell's * also names the output folder
            several = True
            inside, unusable = walk(word, READABLE, leave_out=output)
            if tag:
                inside = [file for file in inside if not file.stem.endswith((".clear", ".residual", f".{tag}"))]
            found |= {file: file.relative_to(word) for file in inside if file not in found}
            result.failures += [(str(entry), reason) for entry, reason in unusable]
            if not inside and not unusable:
                result.failures.append(
                    (word, f"no audio in this folder: looked for {examples(READABLE)} and in its subfolders")
                )
        elif os.path.lexists(word):
            found.setdefault(Path(word), Path(Path(word).name))
        elif matches := sorted(glob.glob(word, recursive=True)):
            several = True
            reasons = {Path(match): why_no_file(match) for match in matches if not os.path.isdir(match)}
            result.failures += [(str(file), reason) for file, reason in reasons.items() if reason]
            files = [file for file, reason in reasons.items() if not reason]
            files = [file for file in files if file not in found and not (output and _inside(file, output))]
            found |= {file: Path(file.name) for file in files}
        else:
            magic = glob.has_magic(word)
            result.failures.append((word, "no file matches this pattern" if magic else str(why_no_file(word))))
    lost = [file for file in found if not os.path.exists(file)]  # broken links
    result.failures += [(str(file), str(why_no_file(file))) for file in lost]
    return [(file, place) for file, place in found.items() if file not in lost], several


def gather_remote(inputs: list[str], output: str | None, tag: str | None, result: Plan) -> tuple[list[Job], bool]:
    """Like `gather`, for inputs of which some are URLs. The jobs have the path under an output folder as target.

    Raises:
        UsageError: if the driver of a storage is not installed.
    """
    found: dict[str, Job] = {}
    several = len(inputs) > 1
    try:
        for word in inputs:
            if not is_remote(word):
                files, many = gather([word], None if output is None or is_remote(output) else output, tag, result)
                found |= {str(file): Job(str(file), place.as_posix()) for file, place in files}
                several |= many
                continue
            entries = remote.find(word, READABLE)
            entries = [entry for entry in entries if not (output and entry.url.startswith(output.rstrip("/") + "/"))]
            if not entries:
                result.failures.append((word, f"no audio at this URL: looked for {examples(READABLE)}"))
            for entry in entries:
                here = entry.url == word
                place = remote.base_name(word) if here else remote.under(entry.url, word)
                if here or not (tag and Path(place).stem.endswith((".clear", ".residual", f".{tag}"))):
                    found[entry.url] = Job(entry.url, place, stamp=entry.stamp, size=entry.size)
                several |= not here
    except ImportError as error:
        raise UsageError(str(error)) from error
    return list(found.values()), several


def _plan_remote(inputs: list[str], output: str | None, tag: str, overwrite: bool) -> Plan:
    """Like `plan`, if an input or the output is a URL."""
    if STDIO in (*inputs, output):
        raise UsageError("'-' cannot be combined with a URL; name a file")
    result = Plan()
    found, several = gather_remote(inputs, output, tag, result)
    try:
        into = output and (several or output.endswith("/") or _is_folder(output))
        folders = (
            {output if into else remote.parent(output)} if output else {remote.parent(job.source) for job in found}
        )
        taken = {entry.url for folder in folders if is_remote(folder) and found for entry in remote.find(folder)}
    except ImportError as error:
        raise UsageError(str(error)) from error
    if output and not into and Path(remote.base_name(output)).suffix.lower() not in WRITABLE:
        raise UsageError(f"-o {output}: expected a name that ends in one of {examples(WRITABLE)}, or a folder with '/'")
    takers: dict[str, str] = {}
    for job in found:
        place = _writable(Path(job.target)).as_posix()
        if output:
            target = remote.join(output, place) if into else output
        elif is_remote(job.source):
            target = remote.join(remote.parent(job.source), _beside(Path(place), tag).name)
        else:
            target = str(_beside(Path(job.source), tag))
        planned = replace(job, target=target)
        taker = takers.setdefault(target, job.source)
        if taker != job.source:
            reason = _clash(taker, job.source, target)
        elif is_remote(target):
            reason = _remote_refusal(planned, taken, overwrite)
        else:
            reason = _refusal(planned, overwrite)
        if reason:
            result.failures.append((job.source, reason))
        else:
            result.jobs.append(planned)
    return result


def _remote_refusal(job: Job, taken: set[str], overwrite: bool) -> str | None:
    if job.target.startswith(("http://", "https://")):
        return "nothing can be written to http:// and https://; give another -o"
    if job.target == job.source:
        return f"the output {job.target} is the input itself, which is never overwritten; give another -o"
    return already_exists(job.target) if job.target in taken and not overwrite else None


def _is_folder(output: str) -> bool:
    return remote.is_folder(output) if is_remote(output) else _means_folder(output)


def make_room(target: str) -> None:
    """Create the folder of `target`.

    Raises:
        OSError: with the folder's name, if it cannot be created.
    """
    folder = Path(target).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be created ({error.strerror}); give another -o") from error


def _single(source: str, target: str, tag: str, overwrite: bool) -> Plan:
    if target != STDIO and _means_folder(target):
        name = Path(f"stdin.{tag}.wav") if source == STDIO else _writable(Path(Path(source).name))
        target = str(Path(target) / name)
    if not is_stream(target) and (suffix := Path(target).suffix.lower()) not in WRITABLE:
        what = f"ends in {suffix!r}" if suffix else "has no extension"
        raise UsageError(f"-o {target} {what}; expected one of {examples(WRITABLE)}, or a folder (end it with '/')")
    job = Job(source, target)
    if reason := _refusal(job, overwrite):
        return Plan(failures=[(source, reason)])
    return Plan(jobs=[job])


def one_name(path: str | Path) -> str:
    """Normalise a path, so that spellings of the same file are equal: case on Windows, accents on macOS."""
    name = os.path.normcase(os.path.abspath(path))
    return unicodedata.normalize("NFC", name) if sys.platform == "darwin" else name


def too_long(target: Path) -> str | None:
    """The reason, if the file name is too long."""
    if (size := len(os.fsencode(target.name))) <= LONGEST_NAME:
        return None
    return (
        f"the output name {target.name} has {size} bytes, but at most {LONGEST_NAME} are allowed; choose a shorter one"
    )


def _clash(taker: str | Path, file: str | Path, target: str | Path) -> str | None:
    if taker == file:
        return None
    return f"this file and {taker} would both be written to {target}; process it separately, with another -o"


def _refusal(job: Job, overwrite: bool) -> str | None:
    """The reason, if this output must not be written. Overwriting the input itself is wrong use."""
    target = Path(job.target)
    if is_stream(job.target):
        return None
    if reason := too_long(target):
        return reason
    if not os.path.exists(target):
        return None
    if job.source != STDIO and _same(job.source, job.target):
        raise UsageError(f"the output {target} is the input itself, which is never overwritten; give another -o")
    if not target.is_file():
        return f"{target} is not a regular file; give another -o"
    return None if overwrite else already_exists(job.target)


def already_exists(target: str) -> str:
    """The reason why an existing file is not replaced."""
    return f"{target} already exists; add --overwrite, or give another -o"


def _same(first: str | Path, second: str | Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False  # one of them does not exist


def _inside(file: Path, folder: str) -> bool:
    return os.path.isdir(folder) and Path(folder).resolve() in file.resolve().parents


def _means_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or os.path.isdir(output)


def _beside(file: Path, tag: str) -> Path:
    name = _writable(file)
    return name.with_name(f"{name.stem}.{tag}{name.suffix}")


def _writable(path: Path) -> Path:
    return path if path.suffix.lower() in WRITABLE else path.with_suffix(".wav")
