"""Help pages where the editor asks for them first."""

from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from server import PromptServer

PAGES = Path(__file__).resolve().parents[2] / "js" / "docs"


def register_help(pack: str) -> None:
    """docs/<node>/en.md is docs/<node>.md, the page of every language that has none of its own.

    Args:
        pack: the folder in custom_nodes, by which the editor asks; spelled out, because of two routes that fit the
            server takes the one with more of the path in plain words.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None:  # loaded without a server, by a tool that only lists nodes
        return

    @server.routes.get(rf"/extensions/{quote(pack)}/docs/{{node:PnPMix\w+}}/en.md")
    async def english(request: web.Request) -> web.StreamResponse:
        page = PAGES / f"{request.match_info['node']}.md"
        if not page.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(page)
