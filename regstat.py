#!/usr/bin/env python3
"""regstat: see README.md, or run with -h."""

import sys

from regstat_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
