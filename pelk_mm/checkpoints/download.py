"""Checkpoints from the web, where torch keeps what it downloads."""

import sys
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch

from .files import CheckpointError, first_line

#: Endings of names that checkpoints have; a link without one leads to a web page.
_SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors', '.pkl', '.npz', '.pyth')


def is_url(source: str) -> bool:
    """Whether a source is an address of the web rather than a path."""
    return source.lower().startswith(('http://', 'https://'))


def download(url: str) -> Path:
    """Download a checkpoint, unless torch has done so already.

    Args:
        url: Its address. The file gets the last part of its path as name, as
            `torch.hub.load_state_dict_from_url` does it.

    Returns:
        The file in ``checkpoints`` of ``torch.hub.get_dir()``.

    Raises:
        CheckpointError: If the address names no checkpoint, cannot be reached, or the
            file cannot be written.
    """
    name = Path(unquote(urlparse(url).path)).name
    if not name.endswith(_SUFFIXES):
        raise CheckpointError(
            f'{url} names no checkpoint file ({", ".join(_SUFFIXES)}); open it in a '
            'browser, save the file it offers and give its path'
        )
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    path = folder / name
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
    except (OSError, HTTPException, ValueError) as error:
        # Errors of the connection and of the server are OSErrors of urllib.
        raise CheckpointError(
            f'{url} cannot be downloaded to {path}: {first_line(error)}'
        ) from error
    return path
