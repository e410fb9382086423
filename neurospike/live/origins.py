"""Keep pages of other sites out: a browser on this machine opens them beside ours."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class OwnOrigin:
    """Middleware that refuses, with 403, what the page of another site asks of the server.

    A browser names that site in the header `Origin`, which a page cannot change. Of our own page it
    is the host that is asked, under whatever name and port: a tunnel may have others than ours.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request or a WebSocket on, or refuse it."""
        if scope["type"] in ("http", "websocket") and _is_foreign(Headers(scope=scope)):
            await PlainTextResponse("Invalid origin header", status_code=403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_foreign(headers: Headers) -> bool:
    origin = headers.get("origin")
    if origin is None:  # no browser, or a page that is opened by its address
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:  # as of "http://["
        return True
