"""A machine with a GPU may have little besides torch and transformers: what runs there must not need more."""

import subprocess
import sys
from pathlib import Path

ABSENT = ("beartype", "compressed_tensors", "hqq", "optimum", "tantivy", "matplotlib", "pyarrow", "sklearn", "openai")
COLLECT = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))  # an import of them fails as if they were not installed
import pytest
sys.exit(pytest.main(["tests/gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]))
"""


def test_gpu_tests_are_collected_without_what_is_missing_there() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", COLLECT], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(path.name for path in (root / "tests" / "gpu").glob("test_*.py"))
    assert files
    assert all(f"tests/gpu/{name}: " in done.stdout for name in files), done.stdout
