"""Malformed requests: no crash, no status 500, no answer that the description does not have, nothing left over."""

import json
import socket
import struct

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import frame, sound

EXAMPLES = 15  # requests per operation in the short run


def operations(served):
    schema = schemathesis.openapi.from_dict(json.loads(served.ask("GET", "/openapi.json")[2]))
    schema.config.update(base_url=served.url)
    return [result.ok() for result in schema.get_all_operations()]


def attack(served, examples):
    """Send generated requests, right and wrong ones, to every operation, and check the answers."""
    for operation in operations(served):

        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def one(case):
            case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])  # bytes need not be sound

        one()


def messages(rng, count):
    """What a client might send after the handshake: frames of every kind, half of them broken."""
    header = b'{"rate": 16000}'
    for _ in range(count):
        payload = rng.bytes(int(rng.integers(0, 300)))
        kinds = (
            lambda payload: frame(1, header) + frame(2, payload),
            lambda payload: frame(1, header) + frame(1, payload),
            lambda payload: frame(1, header) + frame(int(rng.integers(0, 16)), payload[:100]),
            lambda payload: frame(1, header) + payload,
            lambda payload: frame(1, header)[: int(rng.integers(1, 20))],
            lambda payload: frame(1, payload),
            lambda payload: frame(2, payload),
            lambda payload: frame(1, json.dumps({"rate": int(rng.integers(-9, 10**6))}).encode()) + frame(2, payload),
            lambda payload: frame(1, header.replace(b"rate", rng.bytes(4))),
            lambda payload: b"\x82\xff" + struct.pack(">Q", int(rng.integers(0, 2**62))) + payload,  # a huge frame
            lambda payload: frame(1, header) + b"\x02\x80\0\0\0\0" * 50,  # fragments without an end
            lambda payload: frame(8, payload[:2]) + frame(1, header),
            lambda payload: payload,
        )
        yield kinds[int(rng.integers(len(kinds)))](payload)


def flood(served, count, seed=0):
    """Open a stream for each message, send it, and leave in one of several ways."""
    rng = np.random.default_rng(seed)
    for i, data in enumerate(messages(rng, count)):
        with served.raw_stream(None) as sock:
            try:
                sock.sendall(data)
                if i % 3 == 0:
                    sock.settimeout(0.05)
                    sock.recv(1000)
                elif i % 3 == 1:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            except OSError:
                pass


def check_health(served):
    served.wait_until(lambda: not served.service.streams.connections)
    assert served.metric("clearstate_streams") == 0
    assert served.metric("clearstate_errors_total") == 0
    served.wait_until(lambda: works(served))  # after a flood it may be busy for a moment


def works(served):
    with served.stream() as (sock, answer):
        if answer["type"] == "error":
            assert answer["code"] == "busy"
            return False
        sock.send(sound(320))
        return len(sock.recv(timeout=60)) == 640


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_requests_made_from_the_description(served):
    attack(served, EXAMPLES)
    check_health(served)


def test_messages_made_at_random(served):
    flood(served, 130)
    check_health(served)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_five_thousand_malformed_requests(served):
    attack(served, 420)  # of each of the 6 operations with parameters
    flood(served, 2_500, seed=1)
    check_health(served)


@pytest.mark.parametrize(
    "request_",
    [
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/enhance HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /v1/jobs/%2e%2e%2f HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_broken_http_is_answered_or_closed(served, request_):
    with socket.create_connection(served.address, timeout=30) as sock:
        sock.sendall(request_)
        answer = sock.recv(4096)
    assert not answer or 400 <= int(answer.split(b" ")[1]) < 500, answer
    check_health(served)
