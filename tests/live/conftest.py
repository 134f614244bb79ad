import pytest
from sound_server import Server, why_not


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    running = Server(tmp_path_factory.mktemp("pulse"))
    yield running
    running.stop()
