"""Check that a wheel contains all files of the package and no others: `python .ci/check_wheel.py dist/*.whl`."""

import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "embspace_lens"
EXCLUDED = {"embspace_lens/conftest.py"}

wheel = sys.argv[1]
expected = {
    path.relative_to(PACKAGE.parent).as_posix()
    for path in PACKAGE.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
} - EXCLUDED
packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
if packed != expected:
    sys.exit(f"{wheel}: missing files {sorted(expected - packed)}, unexpected files {sorted(packed - expected)}.")
print(f"{wheel}: {len(packed)} files, {Path(wheel).stat().st_size / 2**20:.1f} MB.")
