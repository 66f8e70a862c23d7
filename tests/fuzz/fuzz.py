"""Runs one target of ``targets.py`` under Atheris, for a bounded time.

    python -m tests.fuzz.fuzz TARGET [--seconds 60] [--corpus DIR]

It stops with a status other than 0, and writes the input to the corpus folder, when a target
raises an error that is not ours, takes longer than 10 s for one input, or when the process
needs more than 1 GiB of memory (about 100 MiB of which are the interpreter and its
libraries). ``--list`` prints the names of the targets.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

RSS_MIB = 1024
HANG_S = 10


def main() -> None:
    """Fuzz; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="kept between runs; a temporary one otherwise")
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    arguments = parser.parse_args()
    if arguments.list:
        from tests.fuzz.targets import TARGETS

        print("\n".join(TARGETS))
        return
    import atheris

    with atheris.instrument_imports(include=["attestation", "fedlearn"]):
        from tests.fuzz.targets import OURS, TARGETS

        if arguments.target not in TARGETS:
            parser.error(f"name a target: {', '.join(TARGETS)}")
        target = TARGETS[arguments.target]
        for seed in target.seeds:
            target.read(seed)  # so that what is imported when needed is watched as well
    corpus = arguments.corpus or Path(tempfile.mkdtemp(prefix="fedlearn-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (corpus / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}").write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            target.read(data)
        except OURS:
            return

    options = {
        "max_total_time": arguments.seconds,
        "rss_limit_mb": RSS_MIB,
        "timeout": HANG_S,
        "max_len": target.most,
        "artifact_prefix": f"{corpus}/found-",
        "print_final_stats": 1,
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
