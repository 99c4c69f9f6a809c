"""What requests to the page are answered before gradio sees them."""

import asyncio
import json

import pytest

from pelk_mm.inference import guard
from pelk_mm.inference.guard import MAX_EVENT, Guard

MAX_BYTES = 2 << 20


async def _call(guard, method, path, body, headers):
    parts = [body[:100], body[100:]]
    messages = [
        dict(type='http.request', body=part, more_body=i == 0)
        for i, part in enumerate(parts)
    ]
    sent = []

    async def receive():
        return messages.pop(0) if messages else dict(type='http.disconnect')

    async def send(message):
        sent.append(message)

    scope = dict(
        type='http',
        method=method,
        path=path,
        headers=[(k.encode(), v.encode()) for k, v in headers.items()],
    )
    await guard(scope, receive, send)
    return sent


async def echo(scope, receive, send):
    """An application that answers with the body that it was sent."""
    body, more = b'', True
    while more:
        message = await receive()
        body += message['body']
        more = message['more_body']
    await send(dict(type='http.response.start', status=200, headers=[]))
    await send(dict(type='http.response.body', body=body))


def ask(
    path='/',
    method='GET',
    body=b'',
    hosts=('localhost', '127.0.0.1'),
    folder='no folder',
    **headers,
):
    headers = {
        'host': 'localhost:7860',
        **{k.replace('_', '-'): v for k, v in headers.items()},
    }
    if method == 'POST':
        headers.setdefault('content-length', str(len(body)))
    before = Guard(echo, MAX_BYTES, folder, hosts)
    start, answer = asyncio.run(_call(before, method, path, body, headers))
    return start['status'], answer['body'], dict(start['headers'])


def event(path):
    return json.dumps(
        {'data': [[{'path': path, 'url': 'http://localhost:7860/x'}]]}
    ).encode()


def test_answers_have_a_policy():
    status, _, headers = ask('/assets/index.js')
    assert status == 200
    assert b"default-src 'self'" in headers[b'content-security-policy']
    assert headers[b'x-content-type-options'] == b'nosniff'


@pytest.mark.parametrize(
    'path',
    [
        '/gradio_api/file=http://example.org/a.png',
        '/gradio_api/file=HTTPS://example.org/a.png',
        '/gradio_api/file=http%3A//example.org/a.png',
        '/gradio_api/proxy=https://example.org',
        '/gradio_api/process_recording',
        '/monitoring',
    ],
)
def test_other_servers_are_not_asked(path):
    assert ask(path)[0] == 403


def test_files_may_have_any_name():
    for name in ('monitoring.png', 'proxy=a.png', 'file=http.png', 'mcp/a.png'):
        assert ask(f'/gradio_api/file=/tmp/folder/{name}')[0] == 200


def test_events_pass_unchanged():
    body = event('/tmp/folder/a.png') + b' ' * 500
    status, answer, _ = ask('/gradio_api/queue/join', 'POST', body)
    assert (status, answer) == (200, body)
    status, answer, _ = ask('/gradio_api/queue/join', 'POST', b'{broken')
    assert (status, answer) == (200, b'{broken')


@pytest.mark.parametrize(
    'path', ['http://example.org/a.png', 'ftp://a/b', 'file:///etc']
)
def test_files_are_not_fetched(path):
    status, answer, _ = ask('/gradio_api/queue/join', 'POST', event(path))
    assert status == 403
    assert answer == b'files are uploaded, not fetched from an address'


def test_bodies_are_bounded():
    upload = dict(content_type='multipart/form-data; boundary=x')
    length = str(MAX_BYTES + 1000)
    assert ask('/upload', 'POST', b'', content_length=length, **upload)[0] == 200
    length = str(MAX_BYTES + 10**5)
    assert ask('/upload', 'POST', b'', content_length=length, **upload)[0] == 413
    assert ask('/x', 'POST', b'', content_length=str(MAX_EVENT + 1))[0] == 413
    assert ask('/x', 'POST', b'', content_length='')[0] == 411


@pytest.mark.parametrize(
    ('host', 'status'),
    [('localhost:80', 200), ('127.0.0.1', 200), ('evil.example:7860', 400), ('', 400)],
)
def test_hosts(host, status):
    assert ask(host=host)[0] == status
    assert ask(host=host, hosts=None)[0] == 200


def test_all_uploads_together_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, 'MAX_FOLDER', 1000)
    upload = dict(content_type='multipart/form-data; boundary=x', folder=tmp_path)
    assert ask('/upload', 'POST', b'x' * 300, **upload)[0] == 200
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'a.png').write_bytes(b'x' * 800)
    status, answer, _ = ask('/upload', 'POST', b'x' * 300, **upload)
    assert (status, answer[:8]) == (507, b'too many')
