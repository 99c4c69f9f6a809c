"""Checkpoints from the web, served by this process."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from pelk_mm.checkpoints.download import download, is_url
from pelk_mm.checkpoints.files import CheckpointError


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, its address, and the paths that were asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

        def log_error(self, *_):
            pass

    folder = tmp_path / 'web'
    folder.mkdir()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setenv('no_proxy', '*')
    with ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Handler, directory=folder)
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f'http://127.0.0.1:{server.server_port}', asked
        server.shutdown()
        thread.join()


def test_downloads_once(served, tmp_path):
    folder, address, asked = served
    (folder / 'a b.pth').write_bytes(b'weights')
    url = f'{address}/a%20b.pth?download=1'
    assert is_url(url)
    for _ in range(2):
        path = download(url)
        assert path == tmp_path / 'hub/checkpoints/a b.pth'
        assert path.read_bytes() == b'weights'
    assert asked == ['/a%20b.pth?download=1']
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('/none.pth', 'cannot be downloaded to .*none.pth: HTTP Error 404'),
        ('/uc?id=a.pth', 'names no checkpoint file .* open it in a browser'),
        ('', 'names no checkpoint file'),
    ],
)
def test_refusals(served, tmp_path, path, message):
    with pytest.raises(CheckpointError, match=message):
        download(served[1] + path)
    assert not list(tmp_path.glob('hub/checkpoints/*'))


def test_no_connection(served):
    with pytest.raises(CheckpointError, match='cannot be downloaded to'):
        download('http://127.0.0.1:1/a.pth')


def test_paths_are_no_urls():
    assert not is_url('http.pth')
    assert not is_url('/a/https:/b.pth')
