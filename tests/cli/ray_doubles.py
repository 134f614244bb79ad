"""Workers for the tests of engines: they write half a file, wait, may die, and write the rest."""

import os
import signal
import time

from clearstate.audio.atomic import replacing


def open_worker(folder, seconds=0.1, deadly=None, times=1, failing=None):
    """A worker that notes each attempt in `folder`/attempts; at most `times` attempts at a job die or fail."""

    def work(job, progress):
        with open(os.path.join(folder, "attempts"), "a") as notes:
            notes.write(f"{job.source} {os.getpid()}\n")
        with open(os.path.join(folder, "attempts")) as notes:
            attempts = sum(line.split()[0] == job.source for line in notes)
        with replacing(job.target) as temporary, open(temporary, "w") as file:
            file.write("half ")
            file.flush()
            started = time.monotonic()
            while time.monotonic() - started < seconds:
                progress(0.5, 1.0)
                time.sleep(0.02)
            if job.source == deadly and attempts <= times:
                os.kill(os.getpid(), signal.SIGKILL)
            if job.source == failing and attempts <= times:
                raise OSError("the storage is busy")
            file.write("whole")
        return {"seconds": 1.0}

    return work
