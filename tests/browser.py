"""Pages as headless Chromium renders them, and the data files of the factor site."""

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


def chromium(*options, width=1200, height=900, dark_system=False):
    """Run headless Chromium and return what it prints; `dark_system` sets the preferred colour scheme."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--blink-settings=preferredColorScheme={0 if dark_system else 1}",
        f"--window-size={width},{height}",
        "--virtual-time-budget=8000",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def render(page, fragment="", script=None, tmp_path=None, width=1200, dark_system=False):
    """The DOM of a page after its scripts; `script` runs at the end, in a copy of the folder."""
    if script is not None:
        shutil.copytree(page.parent, tmp_path / "copy", dirs_exist_ok=True)
        page = tmp_path / "copy" / page.name
        page.with_name("drive.js").write_text(script, encoding="utf-8")
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("</body>", '<script src="drive.js"></script></body>'), encoding="utf-8")
    return chromium("--dump-dom", f"{page.as_uri()}{fragment}", width=width, dark_system=dark_system)


def screenshot(page, path, width=1200, height=900, dark_system=False, scale=1):
    """A picture of a page as PNG."""
    options = f"--screenshot={path}", f"--force-device-scale-factor={scale}", "--hide-scrollbars"
    chromium(*options, page.as_uri(), width=width, height=height, dark_system=dark_system)
    return path


def listed_factors(text):
    """The factors of the overview's rows, in order."""
    return [int(n) for n in re.findall(r'href="factor\.html#(\d+)"[^>]*><b>', text)]
