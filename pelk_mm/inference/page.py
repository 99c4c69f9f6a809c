"""A page in the browser: drop an image, see what one or two models make of it."""

import errno
import html
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np

from pelk_mm.install import install_command

from .guard import Guard
from .images import ImageError, image_size
from .models import InferenceError, Model, Segmentation
from .overlay import Entry, draw_result
from .probabilities import TopClasses, top_classes

#: Most pixels of an upload, as its header claims; a photograph has up to 50 million.
MAX_PIXELS = 64_000_000
#: Pixels that larger images are reduced to before they are predicted for.
WORK_PIXELS = 2_000_000
#: Largest upload, in MB.
MAX_MB = 20
#: Where the search for a free port begins.
FIRST_PORT = 7860
#: Pages whose predictions are kept at the same time, and for how many seconds.
SESSIONS, SECONDS_KEPT = 16, 1800

_LOOPBACK = ('127.0.0.1', 'localhost', '::1')

_CSS = """
.legend table { border-collapse: collapse; }
.legend table, .legend tr, .legend td { border: none !important; }
.legend td { padding: 2px 10px 2px 0; }
.legend td:last-child { text-align: right; opacity: 0.7; }
.legend i { display: inline-block; width: 1em; height: 1em; border: 1px solid #888;
  vertical-align: -0.1em; margin-right: 0.5em; }
.problem { border-left: 4px solid #c0392b; padding: 6px 12px; }
.overlay img { cursor: crosshair; }
"""

# Where the pointer is on an overlay, as shares of its width and height; the picture is
# centred in its element where their proportions differ.
_FOLLOW_POINTER = """
let last = 0;
const follow = (event) => {
  const now = performance.now();
  if (event.type === 'mousemove' && now - last < 60) return;
  for (const image of document.querySelectorAll('.overlay img')) {
    const box = image.getBoundingClientRect();
    const { naturalWidth: width, naturalHeight: height } = image;
    const scale = Math.min(box.width / width, box.height / height);
    const x = (event.clientX - box.left - box.width / 2) / (scale * width) + 0.5;
    const y = (event.clientY - box.top - box.height / 2) / (scale * height) + 0.5;
    if (x >= 0 && x < 1 && y >= 0 && y < 1) {
      last = now;
      trigger('select', { x: x, y: y });
      return;
    }
  }
};
document.addEventListener('mousemove', follow);
document.addEventListener('click', follow);
"""


class PageError(ValueError):
    """A page that cannot be served; the message is a sentence."""


class Shown(NamedTuple):
    """What a page shows of one model's prediction.

    Attributes:
        picture: The overlay, (H, W, 3), red first.
        legend: Its lines, the most important first.
        top: The most probable classes of each pixel, of a segmenter.
        caption: The time taken, and what else the reader should know.
    """

    picture: np.ndarray
    legend: list[Entry]
    top: TopClasses | None
    caption: str


def require_gradio() -> None:
    """Raise a `PageError` if gradio is not installed."""
    if find_spec('gradio') is None:
        raise PageError(f'the page needs gradio; run `{install_command("app")}`')


def read_upload(model: Model, path: str) -> tuple[np.ndarray, str]:
    """Read an uploaded image, whose size is looked at before it is decoded.

    Args:
        model: What will predict for it.
        path: The file.

    Returns:
        (H, W, C) of at most about `WORK_PIXELS` pixels, and a note if it was reduced.

    Raises:
        ImageError: If it is no image, or claims more than `MAX_PIXELS` pixels.
    """
    size = image_size(path)
    if size is None:
        raise ImageError('this file is not an image that can be read')
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f'this image has {width} x {height} pixels, more than the '
            f'{MAX_PIXELS // 10**6} million that are accepted'
        )
    try:
        image = model.read_image(path)
    except ImageError as error:
        # The file has a name of the server's, which tells the reader nothing.
        raise ImageError(str(error).replace(path, 'this image')) from error
    height, width = image.shape[:2]
    if width * height <= WORK_PIXELS:
        return image, ''
    scale = (WORK_PIXELS / (width * height)) ** 0.5
    reduced = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(image, reduced, interpolation=cv2.INTER_AREA)
    image = image if image.ndim == 3 else image[..., None]
    return (
        image,
        f'reduced from {width} x {height} to {reduced[0]} x {reduced[1]} pixels',
    )


def show(model: Model, path: str, threshold: float) -> Shown:
    """Predict for an uploaded image.

    Args:
        model: What predicts.
        path: The file.
        threshold: Least score of an object that is drawn.

    Raises:
        ImageError: If the image cannot be read.
        InferenceError: If the model fails on it.
    """
    image, note = read_upload(model, path)
    result = model.predict(image)
    picture, legend = draw_result(model, image, result, threshold)
    top = top_classes(result) if isinstance(result, Segmentation) else None
    device = next(model.model.parameters()).device
    caption = f'{result.seconds:.2f} s on {device}, {image.shape[1]} x {image.shape[0]}'
    return Shown(picture, legend, top, f'{caption} ({note})' if note else caption)


def legend_html(entries: Sequence[Entry]) -> str:
    """A legend as a table; names come from checkpoints and are escaped."""
    if not entries:
        return '<div class="legend">nothing found</div>'
    rows = ''.join(
        f'<tr><td><i style="background: rgb{entry.colour}"></i>'
        f'{html.escape(entry.name)}</td><td>{html.escape(entry.value)}</td></tr>'
        for entry in entries
    )
    return f'<div class="legend"><table>{rows}</table></div>'


def _path_of_upload(payload: Any) -> str | None:
    """The file of an image that was dropped on the page."""
    return payload and payload.path


def build_page(models: Sequence[Model], names: Sequence[str]) -> Any:
    """The page of one or two models.

    Args:
        models: The models; an image is given to each in turn.
        names: What to call them.

    Returns:
        gradio's ``Blocks``.
    """
    import gradio as gr

    lock = threading.Lock()  # the models are shared by all who look at the page

    def predict(path: str | None, threshold: float) -> list[Any]:
        shown: list[Shown] = []
        problem = ''
        try:
            if path is not None:
                with lock:
                    shown = [show(model, path, threshold) for model in models]
        except (ImageError, InferenceError) as error:
            shown, problem = [], f'<div class="problem">{html.escape(str(error))}</div>'
        outputs: list[Any] = [problem]
        for i in range(len(models)):
            one = shown[i] if shown else None
            outputs += [
                one and one.picture,
                legend_html(one.legend) if one else '',
                one.caption if one else '',
                one and one.top,
                None,
            ]
        return outputs

    def at(x: float, y: float, tops: Sequence[TopClasses | None]) -> list[Any]:
        found = [
            None if top is None else {model.class_name(i): p for i, p in top.at(x, y)}
            for model, top in zip(models, tops, strict=True)
        ]
        return found if len(found) > 1 else found[0]  # type: ignore[return-value]

    def follow(event: gr.EventData, *tops: TopClasses | None) -> Any:
        return at(float(event.x), float(event.y), tops)

    detectors = not all(model.is_segmenter for model in models)
    with gr.Blocks(
        analytics_enabled=False, title='pelk_mm', delete_cache=(300, SECONDS_KEPT)
    ) as page:
        gr.Markdown('## What the model sees\nDrop an image, or click to choose one.')
        problem = gr.HTML('', elem_id='problem')
        with gr.Row():
            with gr.Column(scale=2):
                source: Any = gr.Image(
                    label='Image',
                    type='filepath',
                    sources=['upload', 'clipboard'],
                    buttons=[],
                    elem_id='source',
                    height=320,
                )
                # Its size is looked at before anything opens it.
                source.preprocess = _path_of_upload
                threshold = gr.Slider(
                    0, 1, 0.3, label='Least score', visible=detectors, interactive=True
                )
            outputs: list[Any] = [problem]
            overlays, tops, labels = [], [], []
            for i, (model, name) in enumerate(zip(models, names, strict=True)):
                with gr.Column(scale=3):
                    overlay = gr.Image(
                        label=name,
                        interactive=False,
                        format='png',
                        buttons=['download', 'fullscreen'],
                        elem_id=f'overlay-{i}',
                        elem_classes='overlay',
                    )
                    caption = gr.Markdown('', elem_id=f'caption-{i}')
                    label = gr.Label(
                        label='Probabilities under the cursor',
                        elem_id=f'probabilities-{i}',
                        visible=model.is_segmenter,
                        show_heading=False,
                    )
                    legend = gr.HTML('', elem_id=f'legend-{i}')
                top = gr.State(None, time_to_live=SECONDS_KEPT)
                outputs += [overlay, legend, caption, top, label]
                overlays.append(overlay)
                tops.append(top)
                labels.append(label)
                for notice in model.notices:
                    gr.Markdown(html.escape(notice))
        pointer = gr.HTML('', js_on_load=_FOLLOW_POINTER, elem_id='pointer')

        once: dict[str, Any] = dict(
            concurrency_limit=1,
            concurrency_id='models',
            show_progress_on=overlays,
            api_name=False,
        )
        for event in (source.change, threshold.release):
            event(predict, [source, threshold], outputs, **once)
        light: dict[str, Any] = dict(
            queue=False, show_progress='hidden', api_name=False
        )
        pointer.select(follow, tops, labels, trigger_mode='always_last', **light)
    return page


def require_port(host: str, port: int | None) -> int:
    """Find the port to listen on.

    Args:
        host: Name or address to listen on.
        port: The port; None for the first free one from `FIRST_PORT`.

    Raises:
        PageError: If it is taken, or the host is none of this machine's.
    """
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + 100)
    for number in ports:
        try:
            family = socket.AF_INET6 if ':' in host else socket.AF_INET
            with socket.create_server((host, number), family=family) as server:
                return server.getsockname()[1]
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            raise PageError(
                f'--host {host!r} cannot be listened on: {error.strerror or error}; '
                'leave it out for 127.0.0.1'
            ) from error
    if port is None:
        raise PageError(f'no port from {FIRST_PORT} on is free; give one with --port')
    raise PageError(f'port {port} is taken or not allowed; give another with --port')


@contextmanager
def serve(
    models: Sequence[Model],
    names: Sequence[str],
    host: str = '127.0.0.1',
    port: int | None = None,
    max_mb: float = MAX_MB,
) -> Iterator[str]:
    """Serve the page until the block ends.

    Nothing is sent anywhere but to those who open the page, and what they upload is
    kept in a temporary folder that is removed in the end.

    Args:
        models: One model, or two to compare.
        names: What to call them.
        host: Name or address to listen on.
        port: The port; None for the first free one from `FIRST_PORT`.
        max_mb: Largest upload, in MB.

    Yields:
        Address of the page.

    Raises:
        PageError: If gradio is not installed, or the port is taken.
    """
    port = require_port(host, port)
    folder_before = tempfile.tempdir
    own = {
        # gradio reads them when it is imported, and when a page is built.
        'GRADIO_ANALYTICS_ENABLED': 'False',
        'GRADIO_ALLOWED_PATHS': '',
        # It asks its own server whether it is there, which no proxy can know.
        'no_proxy': ','.join([os.environ.get('no_proxy', ''), host, *_LOOPBACK]),
    }
    before = {name: os.environ.get(name) for name in (*own, 'GRADIO_TEMP_DIR')}
    with TemporaryDirectory(prefix='pelk_mm_app_') as folder:
        os.environ.update(own, GRADIO_TEMP_DIR=folder)
        tempfile.tempdir = folder  # of uploads that have not come completely
        try:
            require_gradio()
            page = build_page(models, names)
            try:
                yield _launch(page, host, port, max_mb, folder)
            finally:
                page.close(verbose=False)
        finally:
            tempfile.tempdir = folder_before
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _launch(page: Any, host: str, port: int, max_mb: float, folder: str) -> str:
    """Start the server of a page in a thread; returns its address."""
    import gradio as gr
    from starlette.middleware import Middleware

    max_bytes = round(max_mb * 2**20)
    hosts = (*_LOOPBACK, '[::1]') if host in _LOOPBACK else None
    guard = Middleware(Guard, max_bytes=max_bytes, folder=folder, hosts=hosts)
    page.queue(max_size=SESSIONS)
    _, url, _ = page.launch(
        server_name=f'[{host}]' if ':' in host else host,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        max_file_size=max_bytes,
        state_session_capacity=SESSIONS,
        allowed_paths=[],
        app_kwargs=dict(middleware=[guard]),
        # Of fonts that gradio would have from the network, none.
        theme=gr.themes.Default(
            font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']
        ),
        css=_CSS,
    )
    return url
