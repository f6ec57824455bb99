from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_benchmark_finds_every_acknowledged_event_in_the_database_of_each_engine(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "bench" / "ingest.py"), "--quick", "--json", str(figures)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    cases = json.loads(figures.read_text())["cases"]
    assert [case["engine"] for case in cases] == ["sqlite", "postgres"]
    for case in cases:
        assert case["events"] > 0
        assert case["rate"] > 0
        assert case["without_database"] > 0
        assert case["database_alone"] > 0
    assert "Every acknowledged event was found" in finished.stdout
