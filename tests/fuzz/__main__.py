"""``make fuzz``: change files of every kind that the package reads, and see that each is read or refused.

    python tests/fuzz --seed 0 --budget 10000
    python tests/fuzz --seed 0 --only 1234        the same input once more, with its traceback

An input is a failure where it ends in anything but a result or a UserError, takes too long or too much memory, starts
a process, or writes elsewhere. It is kept in the output folder, and so is the one at which the process itself dies.
"""

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from limits import attempt
from mutations import PLACES

SECONDS = 10  # that an input may take; most take a few hundredths


def write_files(folder, files):
    """Write the files of an input; a name that cannot be is left out."""
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if content in PLACES:
                make = {"folder": os.mkdir, "pipe": os.mkfifo, "loop": lambda place: os.symlink(place.name, place)}
                make[content](path)
            else:
                path.write_bytes(content)
        except (OSError, ValueError):
            continue


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=10_000, help="number of inputs")
    parser.add_argument("--only", type=int, help="number of one input")
    parser.add_argument("--kind", help="only inputs of this kind")
    parser.add_argument("--runtimes", action="store_true", help="exported files too, in what runs them")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder for the inputs that fail")
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    logging.disable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        failed = run(options, output)
    return int(failed > 0)


def run(options, output):
    """Try the inputs; returns how many failed."""
    import kinds

    from retinanet.errors import UserError

    sys.dont_write_bytecode = True  # no input writes beside the modules that it imports
    if options.runtimes:
        kinds.make_exports()
    counts, seconds, failed, began = Counter(), Counter(), 0, time.monotonic()
    for number in range(options.budget) if options.only is None else [options.only]:
        kind = kinds.TURNS[number % len(kinds.TURNS)]
        if options.kind not in (None, kind):
            continue
        change, use, megabytes = kinds.KINDS[kind]
        home = output / f"{options.seed}-{number}-{kind}"
        shutil.rmtree(home, ignore_errors=True)
        folder = home / "input"
        folder.mkdir(parents=True)
        write_files(folder, change(random.Random(f"{options.seed}/{number}")))
        start = time.process_time()
        limit = SECONDS * (6 if kind == "export" else 1)  # OpenVINO compiles twice
        result = attempt(use, folder, UserError, seconds=limit, megabytes=megabytes)
        seconds[kind] += time.process_time() - start
        if result in ("read", "refused"):
            counts[kind, result] += 1
            shutil.rmtree(home)
            continue
        failed += 1
        (home / "traceback.txt").write_text(result, errors="backslashreplace")
        print(f"{home}: {result.strip().splitlines()[-1][:200] if options.only is None else result}", flush=True)
    for (kind, result), count in sorted(counts.items()):
        print(f"{kind:8} {result:8} {count:6}")
    print("seconds of each kind:", ", ".join(f"{kind} {spent:.1f}" for kind, spent in seconds.items()))
    print(f"seed {options.seed}: {counts.total() + failed} inputs in {time.monotonic() - began:.0f} s, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
