"""The server of docs/serving.md, asked over HTTP, badly too."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

import gradood
from gradood.data import embedded_classifier, embedded_images
from tests.documentation import blocks

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def server(tmp_path):
    """The address of the server, and the detector that it serves."""
    pytest.importorskip("litserve")
    (code,) = (block.code for block in blocks(PAGE) if block.code.startswith("# server.py"))
    (tmp_path / "server.py").write_text(code)
    detector = gradood.GradientKNN(embedded_classifier())
    normal = embedded_images("fashion-mnist-train")
    detector.fit(normal[:60]).calibrate(normal[60:100]).save(tmp_path / "knn.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(gradood.__file__).parents[1])}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "server.py", str(port)], cwd=tmp_path, env=environment,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, tmp_path / "log")
        yield address, detector
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def wait_for(address, process, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if urllib.request.urlopen(f"{address}/health", timeout=5).status == 200:
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def ask(address, body):
    """Status and content of the answer."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/predict", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None


def body(content):
    return json.dumps({"image": base64.b64encode(content).decode()}).encode()


def test_requests_good_and_bad_at_once(server):
    address, detector = server
    x = (embedded_images("mnist")[:12] * 255).round() / 255
    good = []
    for pixels in (x[:, 0] * 255).byte().numpy():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        good.append(body(buffer.getvalue()))
    wrong = [
        body(b"no picture"), body(b""), b'{"image": "%%%"}', b'{"image": 3}', b"{}", b"[1]",
        b'{"image": null}', b"no JSON", b"", b"\xff\xfe", body(bytes(1000)),
    ]  # fmt: skip
    requests = [r for pair in zip(good, [*wrong, b"{}"], strict=True) for r in pair]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda request: ask(address, request), requests))
    of_good, of_wrong = answers[::2], answers[1::2]
    assert [status for status, _ in of_good] == [200] * 12
    assert [row["score"] for _, row in of_good] == pytest.approx(
        detector.score(x).tolist(), rel=1e-4
    )
    assert [row["decision"] == 1 for _, row in of_good] == detector.predict(x).tolist()
    assert all(row["error"] is None and len(row["layers"]) == 3 for _, row in of_good)
    for status, row in of_wrong:
        assert status >= 400 or (row["score"] is None and len(row["error"]) > 8)
    assert ask(address, good[0])[1]["score"] == pytest.approx(of_good[0][1]["score"], rel=1e-4)
