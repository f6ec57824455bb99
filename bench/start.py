"""How long the program takes from its start until it listens, on a new SQLite database.

make dist && python bench/start.py --runs 20 dist/regstat.pyz
python bench/start.py --python python3.9 regstat.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds_until_it_listens(command: list[str]) -> float:
    began = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "now listening" in line:
                break
        else:
            raise SystemExit("it ended at its start")
        took = time.monotonic() - began
        process.terminate()
        process.stderr.read()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="dist/regstat.pyz, or regstat.py")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--runs", type=int, default=9)
    given = parser.parse_args()
    took = []
    for _ in range(given.runs):
        with tempfile.TemporaryDirectory() as directory:
            database = str(Path(directory) / "regstat.db")
            took.append(
                seconds_until_it_listens([given.python, "-I", given.program, "-port", "0", "-sqlite", database])
            )
    print(f"{given.runs} starts: {min(took):.3f} s at best, {statistics.median(took):.3f} s in the middle")


if __name__ == "__main__":
    main()
