"""A stand-in for percmae in pods: prints numbered lines, then ends as the variable TOY says.

lines: how many lines, one every ``pause`` seconds; hold: then wait until there is a file /tmp/go;
exit: the code to end with; take: MiB of memory to take before that; only: hold and all after it is
for pods with this word in their names, others go on for ``patience`` seconds and end well. SIGTERM
ends it with 143, after one line.
"""

import os
import signal
import sys
import time


def stop(number, frame):
    print("toy: stopping", flush=True)
    raise SystemExit(128 + number)


def main():
    signal.signal(signal.SIGTERM, stop)
    given = {"lines": "5", "pause": "0.2", "hold": "0", "exit": "0", "take": "0"}
    given |= {"only": "", "patience": "0"}
    given.update(word.split("=", 1) for word in os.environ.get("TOY", "").split())
    host = os.environ.get("HOSTNAME", "")
    print(f"toy: pod {host}", flush=True)
    for number in range(int(given["lines"])):
        print(f"toy: line {number}", flush=True)
        time.sleep(float(given["pause"]))
    if given["only"] not in host:
        time.sleep(float(given["patience"]))
        print("toy: another pod's part", flush=True)
        return 0
    while int(given["hold"]) and not os.path.exists("/tmp/go"):
        time.sleep(0.1)
    if int(given["take"]):
        block = bytearray(int(given["take"]) << 20)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(1)
    code = int(given["exit"])
    if code:
        print(f"percmae: error: the toy was told to end with {code}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
