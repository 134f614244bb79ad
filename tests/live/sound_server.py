"""A PulseAudio server of its own, with two null sinks: what is played into "microphone" can be recorded from it."""

import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress

import numpy as np

RATE = 48_000
MICROPHONE, LOUDSPEAKER = "microphone.monitor", "loudspeaker"
PROGRAMS = ("pulseaudio", "pactl", "pacat")


def why_not():
    """The reason why live audio cannot be tested here; None if it can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"needs a PulseAudio server: {', '.join(missing)} not found"
    try:
        import sounddevice  # noqa: F401
    except (ImportError, OSError) as error:
        return f"needs sounddevice and PortAudio: {error}"
    return None


def hurry():
    """In a child process: run before others, as sound servers do, if the system allows it."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)


class Server:
    def __init__(self, folder):
        self.folder, socket = folder, folder / "native"
        folder.chmod(0o700)
        self.env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "PULSE_SERVER": f"unix:{socket}",
        }
        for name in ("PULSE_SOURCE", "PULSE_SINK", "DBUS_SESSION_BUS_ADDRESS"):
            self.env.pop(name, None)
        options = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
        modules = ["-L", f"module-native-protocol-unix socket={socket} auth-anonymous=1"]
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(
                ["pulseaudio", *options, *modules], env=self.env, stderr=log, stdout=log, preexec_fn=hurry
            )
        until = time.monotonic() + 30
        while not socket.exists():
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError(f"pulseaudio does not start: {(folder / 'log').read_text()}")
            time.sleep(0.05)
        self.modules = {}
        for sink in ("elsewhere", "microphone", "loudspeaker"):  # the first one is the default
            self.load(sink)

    def control(self, *words):
        done = subprocess.run(["pactl", *words], env=self.env, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    def load(self, sink):
        self.modules[sink] = self.control("load-module", "module-null-sink", f"sink_name={sink}", f"rate={RATE}")

    def unload(self, sink):
        self.control("unload-module", self.modules.pop(sink))

    def play(self, samples, sink="microphone"):
        """Play a mono signal after half a second of silence; returns when it has sounded."""
        data = np.concatenate([np.zeros(RATE // 2), samples]).astype("<f4").tobytes()
        command = [*self._pacat("--playback", sink), "--latency-msec=500"]
        subprocess.run(command, input=data, env=self.env, check=True, preexec_fn=hurry)

    def _pacat(self, mode, device):
        return ["pacat", mode, "--raw", "--format=float32le", f"--rate={RATE}", "--channels=1", f"--device={device}"]

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


class Tap:
    """Records a source once it is made, and knows when each sample was there."""

    def __init__(self, server, source):
        command = [*server._pacat("--record", source), "--latency-msec=20"]
        self._process = subprocess.Popen(command, env=server.env, stdout=subprocess.PIPE, preexec_fn=hurry)
        self._parts, self._starts, self._count = [], [], 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        while not self._starts and self._thread.is_alive():
            time.sleep(0.01)

    def _read(self):
        while part := self._process.stdout.read1(1 << 16):
            self._parts.append(part)
            self._count += len(part) / 4
            self._starts.append(time.monotonic() - self._count / RATE)

    def stop(self):
        """The samples, and the time of the first one. A process that waits reads late, never early: the earliest
        of all estimates of that time is the right one."""
        self._process.terminate()
        self._thread.join()
        return np.frombuffer(b"".join(self._parts)[: int(self._count) * 4], "<f4"), min(self._starts)
