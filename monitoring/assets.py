"""The page's files, read once at start: nothing else of the disk can be asked for (beside all arrows).

Reads    monitoring/ui/ and monitoring/ui/node_modules/uplot/dist/ (absent until `make setup` ran npm)
Errors   none; a file that is not listed here does not exist for the server
"""

from dataclasses import dataclass
from pathlib import Path

UI_FOLDER = Path(__file__).resolve().parent / "ui"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_CHART_FILES = ("uPlot.iife.min.js", "uPlot.min.css")


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the page."""

    content: bytes
    content_type: str


def load_assets(folder: Path = UI_FOLDER) -> dict[str, Asset]:
    """Asset by address below /ui/, e.g. `app.css`, `js/main.js`, `vendor/uPlot.iife.min.js`."""
    paths = {
        path.relative_to(folder).as_posix(): path
        for pattern in ("*.html", "*.css", "*.svg", "js/*.js")
        for path in sorted(folder.glob(pattern))
    }
    chart = folder / "node_modules" / "uplot" / "dist"
    paths |= {f"vendor/{name}": chart / name for name in _CHART_FILES if (chart / name).is_file()}
    return {address: Asset(path.read_bytes(), _TYPES[path.suffix]) for address, path in paths.items()}
