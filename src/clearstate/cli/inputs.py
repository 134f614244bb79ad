"""From the words on the command line to a list of (file to read, file to write).

Every verb that turns audio files into audio files names its outputs by the rules in `plan`.
"""

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path

from clearstate.audio.streams import STDIO, as_stdio, is_stream
from clearstate.cli.terminal import UsageError

# What soundfile writes; anything else that can be read (m4a, video) becomes WAV.
WRITABLE = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64"}
)
# What a folder is searched for. A file named outright is tried whatever its name.
AUDIO = WRITABLE | {
    ".m4a",
    ".aac",
    ".wma",
    ".mp4",
    ".m4v",
    ".mkv",
    ".mov",
    ".webm",
    ".avi",
    ".snd",
    ".3gp",
    ".amr",
    ".mka",
}


@dataclass(frozen=True)
class Job:
    """One file to do. Either side may be "-", which stands for stdin or stdout."""

    source: str
    target: str


@dataclass
class Plan:
    jobs: list[Job] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)  # (input, why it cannot be done)


def plan(inputs: list[str], output: str | None, *, tag: str = "clear", overwrite: bool = False) -> Plan:
    """Decide what to read and where to write it.

    * no `output`: `talk.wav` becomes `talk.clear.wav` beside it (`tag` is "clear"); "-" and pipes become "-".
    * `output` is a folder (it exists as one, ends in a slash, or there are several inputs): files keep their names in
      it, and files found in a folder keep their place under that folder.
    * otherwise `output` is the file to write.

    Args:
        inputs: files, folders (searched through), glob patterns, or "-".
    Returns:
        The jobs, and the inputs that cannot become one with the reason; the others should still be done.
    Raises:
        UsageError: when the command line contradicts itself, so that nothing should be begun.
    """
    inputs = [as_stdio(word, 0) for word in inputs]
    output = output and as_stdio(output, 1)
    if STDIO in inputs and len(inputs) > 1:
        raise UsageError("'-' (stdin) came together with other inputs; give it alone")
    if len(inputs) == 1 and is_stream(inputs[0]):
        return _single(inputs[0], output or STDIO, tag, overwrite)

    result = Plan()
    found: list[tuple[Path, Path]] = []  # the file, and its place under an output folder
    several = len(inputs) > 1
    for word in inputs:
        path = Path(word)
        if path.is_dir():
            several = True
            inside = _audio_under(path, tag, skip=Path(output) if output else None)
            found += [(file, file.relative_to(path)) for file in inside]
            if not inside:
                result.failures.append((word, f"no audio in this folder: looked for {_some(AUDIO)} and below it"))
        elif path.exists():
            found.append((path, Path(path.name)))
        elif matches := sorted(glob.glob(word, recursive=True)):
            several = True
            found += [(Path(match), Path(Path(match).name)) for match in matches if Path(match).is_file()]
        elif glob.has_magic(word):
            result.failures.append((word, "no file matches this pattern"))
        else:
            result.failures.append((word, f"no such file or folder (looked in {path.absolute().parent})"))

    if output and not several and not _means_folder(output):
        return _single(str(found[0][0]), output, tag, overwrite) if found else result
    if output == STDIO:
        raise UsageError("'-o -' (stdout) takes one input; give a folder for several")
    if output and (Path(output).is_file() or Path(output).suffix.lower() in AUDIO):
        raise UsageError(f"-o {output} names a file, but there are several inputs; give a folder")

    takers: dict[str, Path] = {}
    for file, place in found:
        target = Path(output) / _writable(place) if output else _beside(file, tag)
        key = os.path.normcase(os.path.abspath(target))
        if key in takers and takers[key] == file:
            continue  # the same file named twice
        if key in takers:
            raise UsageError(f"{takers[key]} and {file} would both be written to {target}; enhance them apart")
        takers[key] = file
        job = Job(str(file), str(target))
        if reason := _refusal(job, overwrite):
            result.failures.append((job.source, reason))
        else:
            result.jobs.append(job)
    return result


def make_room(target: str) -> None:
    """Make the folder that `target` is to lie in.

    Raises:
        OSError: naming the folder, where it cannot be made.
    """
    folder = Path(target).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be made ({error.strerror}); give another -o") from error


def _single(source: str, target: str, tag: str, overwrite: bool) -> Plan:
    if target != STDIO and _means_folder(target):
        name = Path(f"stdin.{tag}.wav") if source == STDIO else _writable(Path(Path(source).name))
        target = str(Path(target) / name)
    if not is_stream(target) and (suffix := Path(target).suffix.lower()) not in WRITABLE:
        what = f"ends in {suffix!r}" if suffix else "has no extension"
        raise UsageError(f"-o {target} {what}; expected one of {_some(WRITABLE)}, or a folder (end it with '/')")
    job = Job(source, target)
    if reason := _refusal(job, overwrite):
        return Plan(failures=[(source, reason)])
    return Plan(jobs=[job])


def _refusal(job: Job, overwrite: bool) -> str | None:
    """Why this output must not be written, if so. The input itself is wrong use; another file is a failure."""
    target = Path(job.target)
    if is_stream(job.target) or not target.exists():
        return None
    if job.source != STDIO and os.path.samefile(job.source, target):
        raise UsageError(f"the output {target} is the input itself; give another -o (the input is never overwritten)")
    if not target.is_file():
        return f"{target} is not a regular file; give another -o"
    return None if overwrite else f"{target} exists already; add --overwrite, or give another -o"


def _audio_under(folder: Path, tag: str, skip: Path | None) -> list[Path]:
    """Audio files in `folder` and below, sorted, without our own results of an earlier run."""
    own = (".clear", ".residual", f".{tag}")
    avoid = skip.resolve() if skip and skip.resolve() != folder.resolve() else None
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in AUDIO
        and not file.name.startswith(".")
        and not file.stem.endswith(own)
        and file.is_file()
        and not (avoid and avoid in file.resolve().parents)
    )


def _means_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or Path(output).is_dir()


def _beside(file: Path, tag: str) -> Path:
    name = _writable(file)
    return name.with_name(f"{name.stem}.{tag}{name.suffix}")


def _writable(path: Path) -> Path:
    return path if path.suffix.lower() in WRITABLE else path.with_suffix(".wav")


def _some(suffixes: frozenset[str]) -> str:
    first = [s for s in (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a") if s in suffixes]
    return " ".join(first) + " …"
