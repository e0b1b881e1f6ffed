"""What the door costs: the same requests to an endpoint directly, by boto3, and through `loradrop serve`, in one run.

    python -m benchmarks.door

The endpoint is a stand-in in a process of its own: it answers at once, or streams a token every 20 ms as a GPU does. So what is
measured is the way, not the model. Direct is loradrop_client, as an application calls it; through the door is a plain HTTP client.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
STREAMS = 64
TOKENS = 128
SECONDS_PER_TOKEN = 0.02
MESSAGES = [{"role": "user", "content": "How are you?"}]
OUTPUTS = {
    "RegistryTable": "registry",
    "EndpointName": "endpoint",
    "BaseComponentName": "base",
    "ReleaseBucketName": "releases",
    "StateMachineArn": "arn:aws:states:us-east-1:000000000000:stateMachine:DeployAdapter",
    "ReconcileFleetArn": "arn:aws:states:us-east-1:000000000000:stateMachine:ReconcileFleet",
}
MAX_OVERHEAD_MS = 3.0
MAX_COST = 1.15


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.door", description=__doc__)
    parser.add_argument("--serve", choices=("endpoint", "door"), help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=400, help="one after the other (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help=f"of {STREAMS} streams each (default: %(default)s)")
    options = parser.parse_args()
    if options.serve == "endpoint":
        asyncio.run(_endpoint())
        return 0
    if options.serve == "door":
        _door()
        return 0
    with _process("endpoint") as (endpoint, _):
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{endpoint}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with _process("door") as (door, process):
            return _measure(door, process, options.requests, options.rounds)


def _measure(door: int, process: "subprocess.Popen[str]", requests: int, rounds: int) -> int:
    from loradrop_client import Adapters

    adapters = Adapters(registry_table="registry", max_connections=STREAMS, cache_seconds=1e9)
    request = {"messages": MESSAGES}
    connection = http.client.HTTPConnection("127.0.0.1", door)

    def directly() -> None:
        adapters.invoke("acme", request)

    def through_door() -> None:
        connection.request("POST", "/v1/chat/completions", _body(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        json.loads(answer.read())

    ways: dict[str, Callable[[], None]] = {"directly": directly, "through the door": through_door}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(requests + 20):
        for way, ask in ways.items():  # in turn: what else the machine does meets both
            began = time.perf_counter()
            ask()
            if number >= 20:
                times[way].append((time.perf_counter() - began) * 1000)
    medians = {way: statistics.median(found) for way, found in times.items()}
    overhead = medians["through the door"] - medians["directly"]
    print(f"{requests} requests one after the other, each way in turn; milliseconds")
    for way, found in times.items():
        deciles = statistics.quantiles(found, n=20)
        print(f"  {way:<17} median {medians[way]:5.2f}   95 % below {deciles[18]:5.2f}")
    print(f"  overhead          median {overhead:5.2f}   (at most {MAX_OVERHEAD_MS:g})")

    rates: dict[str, list[float]] = {"directly": [], "through the door": []}
    firsts: dict[str, list[float]] = {way: [] for way in rates}
    for _ in range(rounds):
        for way, stream in (("directly", _streams_directly(adapters)), ("through the door", _streams_through(door))):
            began = time.perf_counter()
            answered = stream()
            seconds = time.perf_counter() - began
            assert [count for count, _ in answered] == [TOKENS] * STREAMS
            rates[way].append(STREAMS * TOKENS / seconds)
            firsts[way] += [first * 1000 for _, first in answered]
    print(
        f"{STREAMS} streams at once of {TOKENS} tokens, one every {SECONDS_PER_TOKEN * 1000:g} ms; {rounds} rounds, each way in turn"
    )
    for way, found_rates in rates.items():
        print(
            f"  {way:<17} median {statistics.median(found_rates):6.0f} tokens/s   first token {statistics.median(firsts[way]):5.1f} ms"
        )
    cost = statistics.median(rates["directly"]) / statistics.median(rates["through the door"])
    print(f"  throughput cost   {cost:.2f}   (at most {MAX_COST:g})")
    print(f"  the door's memory {_megabytes(process.pid):.0f} MB at most, {os.cpu_count()} cores for all processes")
    return 0 if overhead <= MAX_OVERHEAD_MS and cost <= MAX_COST else 1


def _body(**more: Any) -> bytes:
    return json.dumps({"model": "acme", "messages": MESSAGES, **more}).encode()


def _streams_directly(adapters: Any) -> Callable[[], list[tuple[int, float]]]:
    def stream(began: float) -> tuple[int, float]:
        first, count = 0.0, 0
        for _ in adapters.stream("acme", {"messages": MESSAGES}):
            first = first or time.perf_counter() - began
            count += 1
        return count, first

    def run() -> list[tuple[int, float]]:
        with ThreadPoolExecutor(STREAMS) as threads:
            return list(threads.map(stream, [time.perf_counter()] * STREAMS))

    return run


def _streams_through(door: int) -> Callable[[], list[tuple[int, float]]]:
    async def stream(began: float) -> tuple[int, float]:
        first, count = 0.0, 0
        reader, writer = await asyncio.open_connection("127.0.0.1", door)
        body = _body(stream=True)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        while (line := await reader.readline()) and line != b"data: [DONE]\n":
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                first = first or time.perf_counter() - began
                count += 1
        writer.close()
        return count, first

    async def all_streams() -> list[tuple[int, float]]:
        began = time.perf_counter()
        return await asyncio.gather(*(stream(began) for _ in range(STREAMS)))

    return lambda: asyncio.run(all_streams())


@contextlib.contextmanager
def _process(which: str) -> "Iterator[tuple[int, subprocess.Popen[str]]]":
    """The port that it prints, and itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.door", "--serve", which], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process
    finally:
        process.terminate()
        process.wait(20)


def _megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():  # not on Linux
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return next(int(line.split()[1]) / 1000 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def _door() -> None:
    import boto3
    import uvicorn

    from loradrop_cli.connection import Connection
    from loradrop_client import StackOutputs
    from loradrop_serve.server import application_of, listen

    app = application_of(Connection(StackOutputs("benchmark", OUTPUTS, {}), boto3.Session()))
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


# The endpoint


async def _endpoint() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
            length = next(
                (int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0
            )
            await reader.readexactly(length)
            if "invocations-response-stream" in head:
                await _stream(writer)
            elif "/invocations" in head:
                _answer(writer, _choice({"message": {"role": "assistant", "content": "I am well."}}, "stop"))
            else:
                pointer = {"component": {"S": "acme-1"}, "endpoint": {"S": "endpoint"}, "release": {"S": "0" * 64}}
                _answer(writer, {"Item": {"live": {"M": pointer}}})
            await writer.drain()
    writer.close()


def _choice(said: dict[str, Any], reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "logprobs": None, "finish_reason": reason, **said}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "lmi", "choices": [choice]}


def _answer(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def _stream(writer: asyncio.StreamWriter) -> None:
    from local.hosting.event_stream import payload_part

    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    began = time.monotonic()
    for number in range(TOKENS):
        await asyncio.sleep(max(0.0, began + number * SECONDS_PER_TOKEN - time.monotonic()))
        chunk = _choice({"delta": {"content": "word "}}, "stop" if number == TOKENS - 1 else None)
        event = payload_part(json.dumps(chunk).encode() + b"\n")
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await writer.drain()
    writer.write(b"0\r\n\r\n")


if __name__ == "__main__":
    sys.exit(main())
