"""Damaged files by their number: the same number is the same file in every run."""

import pickle
import random
from pathlib import Path

import numpy as np
import torch

from .mutate_archives import (
    BYTES,
    fix_checksums,
    flip,
    hostile_pickle,
    lie_in_directory,
    mutate_pickle,
    mutate_safetensors,
    mutate_zip,
)
from .mutate_weights import mutate_content, saved
from .watched import Room


class Checkpoints:
    """Damaged checkpoints.

    Args:
        files: Undamaged ones by name, as `make_checkpoints` writes them.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = {name: path.read_bytes() for name, path in files.items()}
        self.content = torch.load(files['whole.pth'], weights_only=False)
        # Small, as hundreds of them are pickled.
        self.small = {k: self.content[k] for k in ('meta', 'state_dict')}
        self.zips = [name for name in files if name.endswith(('.npz', '.pth'))]
        self.zips.remove('legacy.pth')

    def write(self, case: int, room: Room) -> Path:
        """Write a case into a room."""
        name, content = self.damaged(random.Random(case), room.marker)
        path = room.input / name
        path.write_bytes(content)
        return path

    def damaged(self, rng: random.Random, marker: str) -> tuple[str, bytes]:
        """Name and bytes of a damaged file."""
        kind = rng.randrange(10)
        if kind <= 1:
            name = rng.choice(list(self.files))
            content = self.files[name]
            for _ in range(rng.choice((1, 1, 2))):
                content = rng.choice(BYTES)(rng, content) or b'0'
            return name, content
        if kind == 2:  # damage behind right checksums
            name = rng.choice(self.zips)
            content = fix_checksums(flip(rng, self.files[name]))
            return name, content
        if kind == 3:
            name = rng.choice(self.zips)
            damage = rng.choice((mutate_zip, mutate_zip, lie_in_directory))
            if damage is lie_in_directory:
                return name, lie_in_directory(rng, self.files[name])
            return name, mutate_zip(rng, self.files[name], marker)
        if kind == 4:
            content = mutate_safetensors(rng, self.files['x.safetensors'])
            return 'x.safetensors', content
        if kind == 5:
            name = rng.choice(('x.pkl', 'legacy.pth'))
            return name, mutate_pickle(rng, self.files[name])
        if kind == 6:
            content = hostile_pickle(rng, marker)
            if rng.random() < 0.5:  # behind the head of the format before PyTorch 1.6
                head = self.files['legacy.pth']
                content = head[: head.index(b'\x80\x02', 60)] + content
            return rng.choice(('x.pkl', 'x.pth')), content
        source = self.content if kind == 7 else self.small
        changed = mutate_content(rng, source, marker)
        if kind == 9 and rng.random() < 0.3 and isinstance(changed, dict):
            return 'x.pkl', pickle.dumps(_as_arrays(changed), 2)
        return 'x.pth', saved(changed, zipped=rng.random() < 0.8)


def _as_arrays(content: dict) -> dict:
    weights = content.get('state_dict')
    weights = weights if isinstance(weights, dict) else {}
    return {
        name: np.asarray(tensor.detach())
        if torch.is_tensor(tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == 'cpu'
        and tensor.numel() < 1 << 20
        and tensor.dtype in (torch.float32, torch.float64, torch.int64)
        else str(tensor)[:99]
        for name, tensor in weights.items()
    }
