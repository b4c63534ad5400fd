"""A worker of attar's engine protocol (see protocol.rs) on the standard streams. The engine's own file follows, with a `Session`:
`Session(library, model, mode, device, threads)`, its `outputs`, `feed(tokens, afresh)` and `rows(output, start, end)`, and `rewind(length)` if it can; that
of a compiler takes `ask`, too, and has `predicted`."""

import json
import os
import struct
import sys
import time

# Whatever the engine prints must not end up among the answers.
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)

import numpy as np  # noqa: E402


def chosen(values, start, end, fed):
    """Rows of an output `[.., width]` as f32, and the width. One that has the row of the last of `fed` tokens alone has it there."""
    values = values.reshape(-1, values.shape[-1])
    if len(values) == 1 and (start, end) == (fed - 1, fed):
        start, end = 0, 1
    if not 0 <= start <= end <= len(values):
        raise ValueError(f"rows {start} to {end} were asked for, the output has {len(values)}")
    return values[start:end].astype(np.float32), values.shape[-1]


def receive():
    lengths = sys.stdin.buffer.read(12)
    if len(lengths) < 12:
        return None, None
    header, payload = struct.unpack("=IQ", lengths)
    request = json.loads(sys.stdin.buffer.read(header))
    return request, np.frombuffer(sys.stdin.buffer.read(4 * payload), np.uint32)


def send(reply, payload=None):
    header = json.dumps(reply).encode()
    numbers = b"" if payload is None else payload.tobytes()
    answers.write(struct.pack("=IQ", len(header), len(numbers) // 4) + header + numbers)
    answers.flush()


def timed(session, tokens, output, answer):
    """Seconds from now to the first token of an answer, and from each to the next."""
    last, times, at = time.perf_counter(), [], len(tokens) - 1
    session.feed(tokens, True)
    while True:
        rows, _ = session.rows(output, at, at + 1)
        token = int(rows[0].argmax())
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if len(times) >= answer:
            return np.array(times, np.float32)
        session.feed(np.array([token], np.uint32), False)
        at = 0


def main():
    session = None
    while True:
        request, tokens = receive()
        if request is None:
            return
        (verb, values), = request.items()
        try:
            if verb == "open":
                session = Session(**values)
                predicted = getattr(session, "predicted", None)
                send({"opened": {"outputs": list(session.outputs), "rewinds": hasattr(session, "rewind"), "predicted": predicted}})
            elif verb == "feed":
                session.feed(tokens, **values)
                send("fed")
            elif verb == "time":
                send("timed", timed(session, tokens, **values))
            elif verb == "rewind":
                session.rewind(**values)
                send("fed")
            else:
                rows, width = session.rows(**values)
                send({"rows": {"width": width}}, rows)
        except Exception as error:
            send({"failed": {"message": str(error).strip()}})
