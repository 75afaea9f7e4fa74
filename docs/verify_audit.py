"""Check the hash chain of a copy of audit events with Python alone: python3 verify_audit.py FILE."""

import gzip
import hashlib
import json
import sys


def verify(lines):
    """Return how many events of *lines* are good, and what is wrong, or None."""
    hashes, first, last = {}, 0, 0
    for at, line in enumerate(lines, 1):
        try:
            data = json.loads(line)["data"]
            number, previous = int(data["sequence"]), data["previous"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return len(hashes), f"line {at} is no event"
        digest = hashlib.sha256(line).hexdigest()
        if number in hashes and hashes[number] != digest:
            return len(hashes), f"event {number} is there twice, and not the same"
        if number in hashes:  # delivered again
            continue
        if hashes and number != last + 1:
            return len(hashes), f"event {number} stands after event {last}"
        if previous != ("0" * 64 if number == 1 else hashes.get(number - 1, previous)):
            return len(hashes), f"event {number} does not follow event {number - 1}"
        hashes[number], first, last = digest, first or number, number
    return len(hashes), None if hashes else "there are no events"


if __name__ == "__main__":
    with (gzip.open if sys.argv[1].endswith(".gz") else open)(sys.argv[1], "rb") as file:
        count, problem = verify(line.rstrip(b"\r\n") for line in file if line.strip())
    print(f"not intact: {problem}" if problem else f"intact: {count} events")
    sys.exit(1 if problem else 0)
