"""The audio formats by file extension: which files a folder search finds, and which the library writes."""

# File extension to the container's name in libsndfile. These are the formats that the library writes.
CONTAINERS = {
    ".wav": "WAV",
    ".wave": "WAV",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".opus": "OGG",
    ".mp3": "MP3",
    ".aif": "AIFF",
    ".aiff": "AIFF",
    ".aifc": "AIFF",
    ".au": "AU",
    ".snd": "AU",
    ".caf": "CAF",
    ".w64": "W64",
    ".rf64": "RF64",
}
WRITABLE = frozenset(CONTAINERS)

# A search of a folder finds these. A file that the user names is opened whatever its extension.
# PyAV reads the second line: other audio, and the sound tracks of videos.
READABLE = WRITABLE | {".sph"} | {
    ".m4a", ".aac", ".wma", ".amr", ".mka", ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".avi", ".3gp",
}  # fmt: skip


def examples(suffixes: frozenset[str]) -> str:
    """The best-known of some extensions, for messages.

    >>> examples(WRITABLE)
    '.wav .flac .ogg .opus .mp3 …'
    """
    known = [s for s in (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a") if s in suffixes]
    return " ".join(known) + " …"
