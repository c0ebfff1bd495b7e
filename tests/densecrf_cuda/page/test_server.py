"""The server: nobody but this machine is asked or answered, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'densecrf_cuda[demo]'")

from densecrf_cuda import page
from densecrf_cuda.page.layout import NAMES
from densecrf_cuda.page.segment import Settings
from densecrf_cuda.page.server import start


def read(url: str | Request) -> str:
    with build_opener(ProxyHandler({})).open(url) as answer:
        return str(answer.read().decode())


def test_serves_the_loopback_interface_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []
    looked_up: list[Any] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def watched_connect(self: socket.socket, address: Any) -> None:
        connected.append(address)
        connect(self, address)

    def watched_look_up(host: Any, *args: Any, **options: Any) -> Any:
        looked_up.append(host)
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", watched_connect)
    monkeypatch.setattr(socket, "getaddrinfo", watched_look_up)
    # A proxy that is not there: whoever asks it fails.
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")

    server = start()
    try:
        html = read(server.local_url)
        listening = {listener.getsockname() for part in server.server.servers for listener in part.sockets}
    finally:
        server.close(verbose=False)
    assert "densecrf" in html
    assert listening == {("127.0.0.1", server.server_port)}
    assert {address[0] for address in connected} == {"127.0.0.1"}
    assert set(looked_up) <= {"127.0.0.1"}
    assert not server.share
    assert not server.analytics_enabled


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} cannot be used"):
            start(port=port)
    with pytest.raises(ValueError, match=r"port must be in 0\.\.65535 .* got 70000"):
        start(port=70000)


def test_what_cannot_be_opened_is_refused_before_serving(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        page.build(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="is not a picture"):
        page.launch(tmp_path / "text.png", open_browser=False)
    with pytest.raises(ValueError, match="device must be"):
        page.build(device="gpu")


def test_every_setting_has_a_slider_and_its_default() -> None:
    assert sorted(NAMES) == sorted(Settings.__dataclass_fields__)
    sliders = {block.elem_id: block for block in page.build().blocks.values() if block.elem_id in NAMES}
    for name, slider in sliders.items():
        default = getattr(Settings(), name)
        assert slider.value == default
        assert slider.minimum <= default <= slider.maximum
        # What is typed into its box may be nothing, or beyond the ends.
        assert slider.preprocess(None) == default
        assert slider.preprocess(slider.maximum + 1) == slider.maximum
        assert slider.preprocess(slider.minimum - 1) == slider.minimum


def test_ctrl_c_ends_the_page_and_deletes_uploads(tmp_path: Path) -> None:
    # Started in the background by a shell, the tests would hand down that Ctrl-C is to be ignored.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from densecrf_cuda.page import launch; launch(port=0, open_browser=False, device='cpu')"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\npixels\r\n--b--\r\n'
        upload = Request(f"{url}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=b"})
        stored = Path(json.loads(read(upload))[0])
        assert stored.read_bytes() == b"pixels"
        assert tmp_path in stored.parents
        server.send_signal(signal.SIGINT)
        server.communicate()
    assert server.returncode == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_gradio_the_extra_is_named() -> None:
    program = "import sys; sys.modules['gradio'] = None; from densecrf_cuda import page; page.build()"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "pip install 'densecrf_cuda[demo]'" in done.stderr
