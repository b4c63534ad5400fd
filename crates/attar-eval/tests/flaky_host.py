#!/usr/bin/env python3
"""A worker of attar's engine protocol that answers two requests and fails at the third, in the way that its name says."""

import json
import os
import struct
import sys
import time

answered = 0
while True:
    lengths = sys.stdin.buffer.read(12)
    if len(lengths) < 12:
        break
    header, payload = struct.unpack("=IQ", lengths)
    request = json.loads(sys.stdin.buffer.read(header))
    sys.stdin.buffer.read(4 * payload)
    reply, times = {"opened": {"outputs": ["logits"]}}, b""
    if "time" in request:
        answered += 1
        if answered == 3:
            name = os.path.basename(sys.argv[0])
            if name == "dies":
                print("out of luck", file=sys.stderr)
                sys.exit(3)
            if name == "hangs":
                time.sleep(30)
            if name == "refuses":
                reply = {"failed": {"message": "out of luck"}}
        if answered != 3:
            count = request["time"]["answer"]
            reply, times = "timed", struct.pack(f"={count}f", *([0.5] + [0.25] * (count - 1)))
    text = json.dumps(reply).encode()
    sys.stdout.buffer.write(struct.pack("=IQ", len(text), len(times) // 4) + text + times)
    sys.stdout.buffer.flush()
