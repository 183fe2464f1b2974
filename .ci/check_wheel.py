"""Check that a wheel holds every file of the package and nothing else: `python .ci/check_wheel.py dist/*.whl`."""

import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "embspace_lens"
LEFT_OUT = {"embspace_lens/conftest.py"}

wheel = sys.argv[1]
expected = {
    path.relative_to(PACKAGE.parent).as_posix()
    for path in PACKAGE.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
} - LEFT_OUT
packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
if packed != expected:
    sys.exit(f"{wheel} lacks {sorted(expected - packed)} and holds besides {sorted(packed - expected)}.")
print(f"{wheel}: {len(packed)} files, {Path(wheel).stat().st_size / 2**20:.1f} MB.")
