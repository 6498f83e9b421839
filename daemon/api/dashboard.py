"""The dashboard at `/`: a few static files, read once, which load nothing from anywhere else."""

from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parents[1] / "web"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
PATHS = {"/": FOLDER / "index.html", **{f"/web/{file.name}": file for file in FOLDER.iterdir() if file.suffix in TYPES}}
"""Files by path. They hold nothing of anybody's, so they are served without the token."""


class Dashboard:
    def __init__(self) -> None:
        self._files = {path: file.read_bytes() for path, file in PATHS.items()}

    def routes(self) -> list[web.RouteDef]:
        return [web.get(path, self.serve) for path in self._files]

    async def serve(self, request: web.Request) -> web.Response:
        body = self._files[request.path]
        return web.Response(body=body, content_type=TYPES[PATHS[request.path].suffix], charset="utf-8", headers=HEADERS)
