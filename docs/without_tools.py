"""Build the site of a copy of this repository that has no tool: a tool can be deleted for the docs.

python docs/without_tools.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "results", "runs", "site")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        for tool in (copy / "src" / "uturn" / "tools").iterdir():
            if tool.is_dir():
                shutil.rmtree(tool)
        environment = {
            **os.environ,
            "PYTHONPATH": str(copy / "src"),
            "NO_MKDOCS_2_WARNING": "1",
        }
        command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
        return subprocess.run(command, cwd=copy, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
