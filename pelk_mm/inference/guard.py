"""What a request to the page may ask for: its own files, its own host, a bounded body.

gradio itself would fetch an address that a client gives it as the path of a file, and
bounds the size of each file but not of all together. This stands before it.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

#: Most bytes of a request that is not an upload: events with their coordinates.
MAX_EVENT = 1 << 20
#: Most bytes that uploads and pictures may take together.
MAX_FOLDER = 1 << 30
#: What an upload may be larger than its file: the parts' headers.
_MARGIN = 1 << 16

#: How routes begin that lead to other servers or to what the page does not use.
_REFUSED = ('file=http', 'proxy=', 'process_recording', 'monitoring', 'mcp')

#: What a browser may load, as CSP says it: nothing from another host.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
_HEADERS = [
    (b'content-security-policy', _POLICY.encode()),
    (b'x-content-type-options', b'nosniff'),
    (b'referrer-policy', b'no-referrer'),
]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware that answers itself what the page has no use for.

    Args:
        app: The application behind it.
        max_bytes: Largest uploaded file.
        folder: Where uploads are kept.
        hosts: Names that the ``Host`` header may have, against pages elsewhere whose
            name leads here (DNS rebinding); None for any.
    """

    def __init__(
        self,
        app: App,
        max_bytes: int,
        folder: str | Path,
        hosts: tuple[str, ...] | None = None,
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.folder = Path(folder)
        self.hosts = hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        headers = {
            key.lower(): value.decode('latin-1') for key, value in scope['headers']
        }
        problem = self._refuse(scope, headers)
        if problem is None and _is_event(scope, headers):
            body = await _read(receive)
            receive = _replay(body, receive)
            if _names_address(body):
                problem = 403, 'files are uploaded, not fetched from an address'
        if problem is not None:
            await _answer(send, *problem)
            return

        async def send_with_policy(message: Message) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message.get('headers', ()), *_HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _refuse(
        self, scope: Message, headers: dict[bytes, str]
    ) -> tuple[int, str] | None:
        """Status and reason where a request is refused by its head alone."""
        host = headers.get(b'host', '').rpartition(':')[0] or headers.get(b'host', '')
        if self.hosts is not None and host.lower() not in self.hosts:
            return 400, f'this page is not at {host[:100]!r}'
        route = unquote(scope['path']).lower().lstrip('/').removeprefix('gradio_api/')
        if route.startswith(_REFUSED):
            return 403, 'there is no such file'
        if scope['method'] != 'POST':
            return None
        length = headers.get(b'content-length', '')
        if not length.isdecimal():
            return 411, 'the length of the request is missing'
        upload = headers.get(b'content-type', '').startswith('multipart/')
        most = self.max_bytes + _MARGIN if upload else MAX_EVENT
        if int(length) > most:
            return 413, f'at most {most >> 10} KB are accepted'
        if upload and _size(self.folder) + int(length) > MAX_FOLDER:
            return 507, 'too many uploads are kept; try again in half an hour'
        return None


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, some of which may go meanwhile."""
    total = 0
    for path in folder.rglob('*'):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _is_event(scope: Message, headers: dict[bytes, str]) -> bool:
    """Whether a request is an event of the page, a body of JSON."""
    upload = headers.get(b'content-type', '').startswith('multipart/')
    return scope['method'] == 'POST' and not upload


async def _read(receive: Receive) -> bytes:
    """The body of a request."""
    body, more = b'', True
    while more:
        message = await receive()
        if message['type'] != 'http.request':
            break
        body += message.get('body', b'')
        more = message.get('more_body', False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read, and then what follows it."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {'type': 'http.request', 'body': body, 'more_body': False}

    return replay


def _names_address(body: bytes) -> bool:
    """Whether JSON has a file whose path is an address elsewhere."""
    try:
        content = json.loads(body or b'null')
    except (ValueError, RecursionError):
        return False  # gradio answers it
    return any('://' in path for path in _paths(content))


def _paths(node: Any) -> Iterator[str]:
    """The ``path`` entries of nested dicts and lists."""
    nodes = [node]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if isinstance(node.get('path'), str):
                yield node['path']
            nodes.extend(node.values())
        elif isinstance(node, list):
            nodes.extend(node)


async def _answer(send: Send, status: int, text: str) -> None:
    """Answer a request with a line of text."""
    body = text.encode()
    headers = [(b'content-type', b'text/plain; charset=utf-8')]
    await send({'type': 'http.response.start', 'status': status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})
