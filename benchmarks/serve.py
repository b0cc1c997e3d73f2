"""A server under many clients, beside ``predict``'s stream over the same images in the same run, in turns.

The server is a process of its own on the loopback; clients keep their connections and send one JPEG file after the
other. They share the cores with the server, so what is measured is the server with its clients.

    python benchmarks/serve.py MODEL IMAGES [--clients 16] [--seconds 60] [--rounds 4]

MODEL is an exported model, IMAGES a folder. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np

from retinanet import Predictor


def start_server(model: str) -> tuple[subprocess.Popen, int, float]:
    """The process, its port, and the seconds from its start to its first answer."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "retinanet.cli.main", "serve", model, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if found := re.search(r"http://[\d.]+:(\d+)", line):
            port = int(found[1])
            break
    else:
        raise SystemExit("the server did not start")
    while True:
        try:
            asyncio.run(ask_once(port, b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            return process, port, time.perf_counter() - began
        except OSError:
            time.sleep(0.01)


async def ask_once(port: int, request: bytes) -> tuple[int, bytes]:
    """The status and body of an answer, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchange(reader, writer, request)
    finally:
        writer.close()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *parts: bytes) -> tuple[int, bytes]:
    """Send a request; the status and body of its answer, which has a Content-Length."""
    writer.writelines(parts)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
    return int(head.split(b" ")[1]), await reader.readexactly(length)


async def drive(port: int, images: list[bytes], clients: int, seconds: float) -> tuple[Counter, list[float], float]:
    """Statuses, latencies in seconds, and the seconds that it took, of so many clients for so long."""
    statuses: Counter = Counter()
    latencies: list[float] = []
    began = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number * 7
        while time.perf_counter() - began < seconds:
            image = images[turn % len(images)]
            turn += 1
            head = f"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n".encode()
            start = time.perf_counter()
            try:
                async with asyncio.timeout(60):
                    status, body = await exchange(reader, writer, head, image)
                statuses[status if b'"detections"' in body or status != 200 else "no detections"] += 1
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                statuses[type(error).__name__] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            latencies.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    return statuses, latencies, time.perf_counter() - began


def stream(predictor: Predictor, paths: list[Path], seconds: float) -> float:
    """Images a second of ``predict``'s stream."""
    began, done = time.perf_counter(), 0
    endless = (paths[number % len(paths)] for number in range(10**9))
    with closing(predictor.stream(endless)) as results:
        for _ in results:
            done += 1
            if time.perf_counter() - began >= seconds:
                break
        return done / (time.perf_counter() - began)


def read_memory(process: int) -> float:
    """Resident memory in MB."""
    text = Path(f"/proc/{process}/status").read_text()
    return round(int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1000, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    paths = sorted(options.images.glob("*.jp*g"))[:100]
    images, turn = [path.read_bytes() for path in paths], options.seconds / options.rounds
    predictor = Predictor.load(options.model, mode="throughput")
    stream(predictor, paths, 2)
    process, port, ready = start_server(options.model)
    try:
        memory = [read_memory(process.pid)]
        asyncio.run(drive(port, images, options.clients, 2))
        memory.append(read_memory(process.pid))
        statuses, latencies, rates, streams = Counter(), [], [], []
        for _ in range(options.rounds):
            streams.append(stream(predictor, paths, turn))
            some, seconds_each, took = asyncio.run(drive(port, images, options.clients, turn))
            statuses += some
            latencies += seconds_each
            rates.append(some[200] / took)
        memory.append(read_memory(process.pid))
        _, model = asyncio.run(ask_once(port, b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    finally:
        process.terminate()
        process.wait(60)
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    result = {
        "backend": json.loads(model)["backend"],
        "seconds to ready": round(ready, 2),
        "answers": {str(status): count for status, count in statuses.items()},
        "server images/s": [round(rate, 1) for rate in rates],
        "stream images/s": [round(rate, 1) for rate in streams],
        "server / stream": round(sum(rates) / sum(streams), 3),
        "p50 ms": round(p50, 1),
        "p99 ms": round(p99, 1),
        "MB at start, after 2 s, at end": memory,
        "load average": [round(value, 1) for value in os.getloadavg()],
        "exit code": process.returncode,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
