"""Pages of the factor site as headless Chromium renders them, and their data files."""

import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def read_data(path):
    """The name and the value in a data file."""
    text = path.read_text(encoding="utf-8")
    name, value = re.fullmatch(r"esl\.give\((\"[^\"]*\"),(.*)\);\n", text, re.S).groups()
    return json.loads(name), json.loads(value)


def render(page, fragment="", script=None, tmp_path=None, width=1200):
    """The DOM of a page after its scripts; `script` runs at the end, in a copy of the folder."""
    if script is not None:
        shutil.copytree(page.parent, tmp_path / "copy", dirs_exist_ok=True)
        page = tmp_path / "copy" / page.name
        page.with_name("drive.js").write_text(script, encoding="utf-8")
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("</body>", '<script src="drive.js"></script></body>'), encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={width},900",
    ]
    command += ["--virtual-time-budget=8000", "--dump-dom", f"{page.as_uri()}{fragment}"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return process.stdout


def listed_factors(text):
    """The factors of the overview's rows, in order."""
    return [int(n) for n in re.findall(r'href="factor\.html#(\d+)"[^>]*><b>', text)]
