"""Load a service on this machine and measure it: how many live streams hold, and what strange clients do to them.

    python benchmarks/serve.py [SCENARIO ...] [--streams 50 100 200] [--seconds 10] [--minutes 1] [--json FILE]

Every scenario starts its own service and runs beside it on the same cores.

    load      real-time clients, 16 kHz, one message per --message milliseconds: the lag of each, and what is refused
    batch     one call of the model for several streams, against a call for each
    idle      1,000 connections that say nothing, and 1,000 open streams that send nothing
    churn     clients that connect, send garbage and vanish
    slow      a client that sends and never reads
    oversize  an upload that is too large, with and without saying so
    endless   an upload that never ends
    files     ten recordings of --minutes at the same time
    soak      streams that stay, come and go, and garbage, for --minutes: the memory of the service, once a minute

"lag" is the time from the sending of a message until its output has arrived; the latency of the model is not part of
it. Beside the strange clients, one well-behaved stream runs all the time, and its lag is printed. The clients' own
processor time is printed apart, because they share the cores with the service. The load generator speaks WebSocket
itself, with frames that are made before, to take little of it.
"""

import argparse
import base64
import contextlib
import json
import os
import platform
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clearstate.runtime import open_model

RATE = 16_000  # Hz
LIMIT = 0.020  # seconds of lag at the 99th percentile
SETTLE = 2.0  # seconds after the start that are not counted
STREAMS = [25, 50, 100, 150, 200]


# ------------------------------------------------------------------------------------------------------ the service


class Served:
    """A service in a process of its own."""

    def __init__(self, *options: str) -> None:
        self.spool = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "clearstate", "serve", "--port", "0", "--spool", self.spool.name, *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"serving on http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit(f"the service did not start: {''.join(self.log)}")
        threading.Thread(target=lambda: self.log.extend(self.process.stderr or []), daemon=True).start()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.spool.cleanup()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def processes(self) -> list[Path]:
        """The service and its processes for streams, in /proc. Those for files have a low priority."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        pids = [pid for children in tasks.glob("*/children") for pid in children.read_text().split()]
        found = [Path("/proc", pid) for pid in [str(self.process.pid), *pids]]
        return [path for path in found if int(stat_of(path)[16]) <= os.nice(0)]

    @property
    def cpu(self) -> float:
        """Processor seconds so far, without the processes for files."""
        fields = map(stat_of, self.processes)
        return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> float:
        """MB of its own, also where swapped out, without libraries, whose pages come and go; no processes for files."""
        lines = "".join((path / "status").read_text() for path in self.processes)
        return sum(int(kb) for kb in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+)", lines, re.M)) / 1024

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def get(self, path: str) -> bytes:
        return ask(self, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())


def stat_of(process: Path) -> list[str]:
    """The fields of a process in /proc, from its state on."""
    return (process / "stat").read_text().rsplit(")", 1)[1].split()


def ask(served: Served, request: bytes) -> bytes:
    """Send a request and return all of the answer."""
    with served.connect() as sock:
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(1 << 16), b""))


# ---------------------------------------------------------------------------------------------------- the clients


def frame(opcode: int, payload: bytes) -> bytes:
    """A WebSocket frame of a client. The mask is zero, so the payload stays as it is."""
    size = len(payload)
    head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + head + bytes(4) + payload


def upgrade() -> bytes:
    """The handshake of a WebSocket."""
    lines = (
        "GET /v1/stream HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}", "Sec-WebSocket-Version: 13",
    )  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


def header(rate: int = RATE) -> bytes:
    """The first message of a stream."""
    return frame(1, json.dumps({"rate": rate}).encode())


def open_stream(served: "Served") -> socket.socket:
    """A WebSocket whose header has been sent."""
    sock = served.connect()
    sock.sendall(upgrade())
    sock.recv(4096)
    sock.sendall(header())
    return sock


def speech_like(samples: int, count: int = 50) -> list[bytes]:
    """Frames of noise with a varying level."""
    rng = np.random.default_rng(0)
    levels = 3000 * np.abs(np.sin(np.arange(count)))
    return [frame(2, (level * rng.standard_normal(samples)).astype("<i2").tobytes()) for level in levels]


class Client:
    """One stream in real time."""

    def __init__(self, served: Served) -> None:
        self.sock = served.connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(upgrade())
        self.sock.setblocking(False)
        self.received = b""
        self.state = "opening"  # ready, refused, gone
        self.sent: deque[float] = deque()
        self.count = 0

    def read(self, now: float, lags: list[float]) -> None:
        """Take what has arrived; add the lags of the messages."""
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.state = "gone" if self.state != "refused" else self.state
            return
        self.received += data
        if self.state == "opening":
            head, found, rest = self.received.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head:
                self.state = "refused"
                return
            self.received, self.state = rest, "accepted"
            self.sock.send(header())
        while len(self.received) >= 2:
            size, start = self.received[1], 2
            if size == 126:
                size, start = int.from_bytes(self.received[2:4], "big"), 4
            if len(self.received) < start + size:
                return
            opcode, payload = self.received[0] & 15, self.received[start : start + size]
            self.received = self.received[start + size :]
            if opcode == 2:
                lags.append(now - self.sent.popleft())
            elif opcode == 1:
                self.state = {"ready": "ready", "error": "refused"}.get(json.loads(payload)["type"], self.state)
            elif opcode == 9:
                self.sock.send(frame(10, payload))
            elif opcode == 8 and self.state != "refused":
                self.state = "gone"


class Crowd:
    """Clients in real time, all in this thread."""

    def __init__(self, served: Served, count: int, period: float = 0.02) -> None:
        self.period, self.selector = period, selectors.DefaultSelector()
        self.frames = speech_like(round(RATE * period))
        self.clients: list[Client] = []
        self.lags: list[float] = []
        self.slips: list[float] = []  # how late the load generator itself was
        deadline = time.monotonic() + 30 + count / 20
        for _ in range(count):
            client = Client(served)
            self.selector.register(client.sock, selectors.EVENT_READ, client)
            self.clients.append(client)
        while any(client.state in ("opening", "accepted") for client in self.clients) and time.monotonic() < deadline:
            self._read(0.1)
        self.ready = [client for client in self.clients if client.state == "ready"]

    def _read(self, timeout: float) -> None:
        for key, _ in self.selector.select(timeout):
            key.data.read(time.monotonic(), self.lags)
            if key.data.state in ("gone", "refused"):
                self.selector.unregister(key.fileobj)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Send in real time; the clients' messages are spread over the period."""
        period = self.period
        start = time.monotonic() + 0.05
        due = deque((start + i * period / max(1, len(self.ready)), client) for i, client in enumerate(self.ready))
        counted = False
        while (now := time.monotonic()) < start + SETTLE + seconds and not until():
            if not counted and now > start + SETTLE:
                self.lags, self.slips, counted = [], [], True
            while due and due[0][0] <= now:
                at, client = due.popleft()
                if client.state != "ready":
                    continue
                now = time.monotonic()
                self.slips.append(now - at)
                client.sent.append(now)
                try:
                    client.sock.send(self.frames[client.count % len(self.frames)])
                except BlockingIOError:  # held back: this message is dropped
                    client.sent.pop()
                    client.missed = getattr(client, "missed", 0) + 1
                except OSError:
                    client.state = "gone"
                client.count += 1
                due.append((at + period, client))
            self._read(max(0.0, min(0.01, (due[0][0] if due else now + 0.01) - time.monotonic())))
        ended = time.monotonic()
        while any(client.sent for client in self.ready if client.state == "ready") and time.monotonic() < ended + 1:
            self._read(0.05)

    @property
    def dropped(self) -> int:
        """Messages without an answer."""
        return sum(len(client.sent) + getattr(client, "missed", 0) for client in self.ready)

    def close(self) -> None:
        for client in self.clients:
            client.sock.close()
        self.selector.close()


def quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


def lags_of(crowd: Crowd) -> dict[str, float]:
    return {
        "p50_ms": 1e3 * quantile(crowd.lags, 0.5),
        "p99_ms": 1e3 * quantile(crowd.lags, 0.99),
        "max_ms": 1e3 * quantile(crowd.lags, 1.0),
        "dropped": crowd.dropped,
    }


@contextlib.contextmanager
def probe(served: Served) -> Iterator[Crowd]:
    """A well-behaved stream in a thread, beside what the block does."""
    crowd, stop = Crowd(served, 1), threading.Event()
    thread = threading.Thread(target=crowd.run, args=(1e6, stop.is_set))
    thread.start()
    time.sleep(SETTLE + 0.2)
    try:
        yield crowd
    finally:
        stop.set()
        thread.join()
        crowd.close()


# -------------------------------------------------------------------------------------------------------- scenarios


def load(args: argparse.Namespace) -> list[dict[str, Any]]:
    print(f"{'streams':>8} {'served':>7} {'refused':>8} {'p50':>8} {'p99':>8} {'max':>8} {'late':>7} {'dropped':>8}"
          f" {'service':>9} {'clients':>9} {'slip p99':>9}")  # fmt: skip
    rows = []
    for count in args.streams:
        with Served("--backend", args.backend) as served:
            crowd = Crowd(served, count, args.message / 1000)
            cpu, own, started = served.cpu, time.process_time(), time.monotonic()
            crowd.run(args.seconds)
            wall = time.monotonic() - started
            row = {
                "streams": count, "served": len(crowd.ready), "refused": count - len(crowd.ready), **lags_of(crowd),
                "late": float(np.mean(np.array(crowd.lags) > LIMIT)) if crowd.lags else 0.0,
                "service_cores": (served.cpu - cpu) / wall, "client_cores": (time.process_time() - own) / wall,
                "slip_p99_ms": 1e3 * quantile(crowd.slips, 0.99),
            }  # fmt: skip
            crowd.close()
        rows.append(row)
        print(f"{count:8} {row['served']:7} {row['refused']:8} {row['p50_ms']:5.1f} ms {row['p99_ms']:5.1f} ms "
              f"{row['max_ms']:5.0f} ms {row['late']:7.2%} {row['dropped']:8} {row['service_cores']:3.2f} cores "
              f"{row['client_cores']:3.2f} cores {row['slip_p99_ms']:6.1f} ms", flush=True)  # fmt: skip
    held = [row["served"] for row in rows if row["p99_ms"] < 1e3 * LIMIT and not row["dropped"]]
    print(f"{max(held, default=0)} streams hold a p99 lag below {1e3 * LIMIT:.0f} ms")
    return rows


def batch(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One call of the model for the hops of several streams, against a call for each: processor time per hop."""
    rows = []
    for backend in ("torch", "onnx"):
        try:
            model = open_model("live", "enhance", backend=backend)
        except (ValueError, ImportError) as error:
            print(f"  {backend}: {error}")
            continue
        apart = [model.open_stream(1, live=True) for _ in range(16)]
        alone = per_hop(lambda hop, apart=apart: [advance(hop[:1]) for advance in apart], model.hop, 16)
        rows.append({"what": f"{backend}, 16 streams one by one", "us_per_hop": 1e6 * alone})
        for streams in (4, 8, 16):
            together = gathered(model, streams) if backend == "onnx" else model.open_stream(streams, live=True)
            each = per_hop(together, model.hop, streams)
            rows.append({"what": f"{backend}, {streams} in one call", "us_per_hop": 1e6 * each, "ratio": alone / each})
    return rows


def per_hop(advance: Callable[[np.ndarray], Any], hop: int, streams: int) -> float:
    samples = (0.1 * np.random.default_rng(0).standard_normal((streams, hop))).astype(np.float32)
    spent = []
    for _ in range(60):
        started = time.thread_time()
        advance(samples)
        spent.append((time.thread_time() - started) / streams)
    return quantile(spent[10:], 0.5)


def gathered(model: Any, streams: int) -> Callable[[np.ndarray], Any]:
    """One call for streams that each keep their own state, as they must, because they come and go."""
    states = [{name: np.zeros((1, *shape), np.float32) for name, shape in model.states.items()} for _ in range(streams)]
    wanted = ["output", *(name.replace("state_", "next_", 1) for name in model.states)]

    def advance(samples: np.ndarray) -> Any:
        feeds = {name: np.concatenate([state[name] for state in states]) for name in model.states}
        output, *after = model.session.run(wanted, {"samples": samples, **feeds})
        for i, state in enumerate(states):
            state.update({name: value[i : i + 1] for name, value in zip(model.states, after, strict=True)})
        return output

    return advance


def idle(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for what, opening in (("connections", Served.connect), ("streams that send nothing", open_stream)):
        with Served() as served:
            before = served.memory
            with probe(served) as crowd:
                socks = []
                for _ in range(1000):
                    socks.append(opening(served))
                time.sleep(args.seconds)
                row = {"what": f"1000 idle {what}", "mb": served.memory - before}
                text = served.get("/metrics").decode()
                rows.append(row | {"admitted": float(re.search(r"^clearstate_streams (\S+)", text, re.M)[1]) - 1})
                for sock in socks:
                    sock.close()
            rows[-1] |= lags_of(crowd)
    return rows


def churn(args: argparse.Namespace) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    openings = [
        lambda: rng.bytes(200),
        lambda: b"GET /v1/stream HTTP/1.1\r\n",
        upgrade,
        lambda: upgrade() + rng.bytes(200),
        lambda: b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + rng.bytes(500),
    ]
    messages = [
        lambda: header(int(rng.integers(-1, 10**6))),
        lambda: header() + rng.bytes(200),
        lambda: header() + frame(2, rng.bytes(640)) * 3,
        lambda: header() + frame(1, rng.bytes(100)),
        lambda: frame(1, rng.bytes(100)),
    ]
    with Served() as served, probe(served) as crowd:
        before, count, deadline = served.memory, 0, time.monotonic() + 60 * args.minutes
        while time.monotonic() < deadline and served.alive:
            with contextlib.suppress(OSError), served.connect() as sock:
                if count % 2:
                    sock.sendall(openings[count // 2 % len(openings)]())
                else:
                    sock.sendall(upgrade())
                    sock.recv(1000)
                    sock.sendall(messages[count // 2 % len(messages)]())
                if count % 3 == 0:
                    sock.settimeout(0.05)
                    sock.recv(1000)
            count += 1
            time.sleep(0.002)
        time.sleep(3)
        row = {"what": f"{count} clients of churn", "mb": served.memory - before, "alive": served.alive}
        text = served.get("/metrics").decode()
        row["streams_left"] = float(re.search(r"^clearstate_streams (\S+)", text, re.M)[1]) - 1
    return [row | lags_of(crowd)]


def slow(args: argparse.Namespace) -> list[dict[str, Any]]:
    with Served() as served, probe(served) as crowd:
        before, chunk = served.memory, frame(2, bytes(2 * RATE // 2))  # half a second each
        sock = open_stream(served)
        sock.setblocking(False)
        sent, deadline = 0, time.monotonic() + args.seconds + 25
        while time.monotonic() < deadline:
            try:
                sent += sock.send(chunk)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        row = {"what": "a client that does not read", "sent_mb": sent / 2**20, "mb": served.memory - before}
        sock.close()
    return [row | lags_of(crowd)]


def oversize(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with Served("--max-upload", "20") as served, probe(served) as crowd:
        head = b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\n"
        declared = ask(served, head + b"Content-Length: 99999999999\r\n\r\n")
        rows.append({"what": "too large, declared", "answer": declared[:12].decode()})
        before = served.memory
        with served.connect() as sock:
            sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            sent, piece = 0, b"100000\r\n" + bytes(1 << 20) + b"\r\n"
            answer = b""
            with contextlib.suppress(OSError):
                while sent < 1000 and not answer:
                    sock.sendall(piece)
                    sent += 1
                    sock.settimeout(0.001)
                    with contextlib.suppress(TimeoutError):
                        answer = sock.recv(1000)
                    sock.settimeout(30)
            with contextlib.suppress(OSError):
                answer = answer or sock.recv(1000)
        left = sum(file.stat().st_size for file in Path(served.spool.name).rglob("*") if file.is_file())
        rows.append({
            "what": "too large, not declared", "answer": answer[:12].decode(), "sent_mb": sent,
            "mb": served.memory - before, "left_mb": left / 2**20,
        })  # fmt: skip
    rows[-1] |= lags_of(crowd)
    return rows


def endless(args: argparse.Namespace) -> list[dict[str, Any]]:
    with Served() as served, probe(served) as crowd:
        socks = [served.connect() for _ in range(20)]
        for sock in socks:
            sock.sendall(b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nRIFF")
        started, deadline = time.monotonic(), time.monotonic() + 90
        answers = []
        for sock in socks:
            sock.settimeout(max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(OSError):
                answers.append(sock.recv(1000)[:12].decode())
        row = {
            "what": "20 uploads without an end",
            "answers": sorted(set(answers)),
            "after_s": time.monotonic() - started,
        }
    return [row | lags_of(crowd)]


def files(args: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "long.wav")
        noise = (3000 * np.random.default_rng(0).standard_normal(RATE * 60)).astype("<i2").tobytes()
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            for _ in range(max(1, round(args.minutes))):
                file.writeframes(noise)
        size = path.stat().st_size
        results: list[int] = []

        def one(served: Served) -> None:
            with served.connect() as sock, open(path, "rb") as source:
                sock.settimeout(3600)
                sock.sendall(f"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
                sock.sendfile(source)
                results.append(sum(map(len, iter(lambda: sock.recv(1 << 16), b""))) if sock else 0)

        with Served("--workers", str(args.workers)) as served, probe(served) as crowd:
            before, peak, started = served.memory, 0.0, time.monotonic()
            threads = [threading.Thread(target=one, args=(served,), daemon=True) for _ in range(10)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                peak = max(peak, served.memory)
                time.sleep(0.2)
                if time.monotonic() - started > 3600:
                    break
            wall = time.monotonic() - started
            row = {
                "what": f"10 files of {args.minutes:g} min", "whole": sum(got > size for got in results),
                "seconds": wall, "real_time": 600 * args.minutes / wall, "mb": peak - before,
            }  # fmt: skip
    return [row | lags_of(crowd)]


def soak(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Streams that stay, others that come and go, and clients that send garbage; the memory once a minute."""
    with Served("--backend", args.backend) as served, probe(served):
        memory, ends, rounds, started = [], 0, 0, time.monotonic()
        while (since := time.monotonic() - started) < 60 * args.minutes and served.alive:
            crowd = Crowd(served, 10)
            crowd.run(3.0)
            crowd.close()
            for junk in (upgrade(), upgrade() + header() + bytes(50), b"GET / HTTP/1.1\r\n\r\n", bytes(100)):
                with contextlib.suppress(OSError), served.connect() as sock:
                    sock.sendall(junk)
                    ends += 1
            rounds += 1
            if since >= 60 * len(memory):
                memory.append(served.memory)
                print(f"  {since / 60:4.0f} min {memory[-1]:7.1f} MB", flush=True)
    settled = memory[len(memory) // 6 :]  # after the first minutes, which fill caches
    slope = float(np.polyfit(range(len(settled)), settled, 1)[0]) if len(settled) > 1 else float("nan")
    return [{
        "what": f"{rounds} rounds of 10 streams, {ends} clients with garbage", "mb_first": memory[0],
        "mb_settled": settled[0], "mb_last": memory[-1], "mb_per_minute": slope,
    }]  # fmt: skip


SCENARIOS = {
    "load": load, "batch": batch, "idle": idle, "churn": churn, "slow": slow, "oversize": oversize, "endless": endless,
    "files": files, "soak": soak,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"default: all of {', '.join(SCENARIOS)}")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="for load")
    parser.add_argument("--message", type=float, default=20.0, help="milliseconds of audio in a message, for load")
    parser.add_argument("--backend", default="auto", help="auto, torch (compiled) or onnx, for load")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    parser.add_argument("--minutes", type=float, default=1.0, help="of churn, soak and each file")
    parser.add_argument("--workers", type=int, default=1, help="processes for files")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, backend {args.backend}; "
          f"load before the start {os.getloadavg()[0]:.1f}")  # fmt: skip
    results = {}
    for name in args.scenarios or SCENARIOS:
        print(f"\n{name}")
        results[name] = SCENARIOS[name](args)
        for row in results[name] if name != "load" else []:
            print("  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
