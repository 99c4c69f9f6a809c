"""Damage of checkpoints as what they hold: tensors, names, notes, states."""

import argparse
import copy
import io
import random
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Shapes that a tensor of one value pretends to have.
_BOMBS = ((1 << 40,), (1 << 20, 1 << 20), (4, 4, 1 << 16, 1 << 16), (1 << 28,))

_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
)

#: Names that could lead out of a folder, steer a terminal, or exhaust a pattern.
NAMES = (
    '',
    '../../outside/x',
    '/outside/x',
    'a\x1b[2Jb',
    'line\nbreak',
    '\ud800',
    'n' * 5000,
    '{__class__}',
    '%s%n',
    'stages.0.blocks.999999999.gamma',
    'stages.' + '9' * 40 + '.blocks.0.gamma',
    'module.' * 300 + 'x',
    '<script>x</script>',
    '$HOME',
    '_' * 400 + '.',
)


def odd_tensor(rng: random.Random, like: Tensor) -> Any:
    """Something else in the place of a tensor."""
    kind = rng.randrange(16)
    if kind == 0:  # a few bytes that pretend to be terabytes
        return torch.zeros(1).expand(rng.choice(_BOMBS))
    if kind == 1 and like.ndim:  # of the right shape, one value repeated
        return torch.zeros((1,) * like.ndim).expand(like.shape)
    if kind == 2:
        dense = torch.zeros(3, 3)
        return rng.choice((dense.to_sparse(), dense.to_sparse_csr()))
    if kind == 3:
        shape = (1 << 20, 1 << 20)
        indices = torch.zeros(2, 1, dtype=torch.int64)
        return torch.sparse_coo_tensor(indices, torch.ones(1), shape)
    if kind == 4:
        return torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8)
    if kind == 5:
        return torch.empty(rng.choice(_BOMBS), device='meta')
    if kind == 6:
        return like.to(rng.choice(_DTYPES))
    if kind == 7:
        dtype = like.dtype if like.is_floating_point() else torch.float32
        value = rng.choice((np.nan, np.inf, -np.inf, 1e38))
        return torch.full_like(like, value, dtype=dtype)
    if kind == 8:
        return rng.choice((like.flatten(), like[None], like.mT if like.ndim > 1 else 0))
    if kind == 9:
        return torch.zeros(rng.choice(((), (0,), (0, 3), (1,) * 20, (2, 3, 5, 7))))
    if kind == 10:
        return rng.choice((None, 3, 'text', b'bytes', 1e400, [1], {'a': 1}, (), {1, 2}))
    if kind == 11:
        return rng.choice((like.numpy(), like.double().numpy(), np.float64(3)))
    if kind == 12:
        return nested(rng.choice((10, 500)))
    if kind == 13:
        return torch.nn.Parameter(like.clone(), like.is_floating_point())
    if kind == 14:
        return torch.zeros(8)[1:3].as_strided((2, 2), (1, 1))
    return like.flip(0).mul(-1) if like.is_floating_point() and like.ndim else like


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    node: Any = [torch.zeros(1)]
    for _ in range(depth):
        node = [node]
    return node


def cyclic() -> dict[str, Any]:
    """A dict that contains itself."""
    node: dict[str, Any] = {'a': torch.zeros(2)}
    node['state_dict'] = node
    node['list'] = [node]
    return node


def _slots(node: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Containers and keys of everything in nested dicts and lists."""
    items: Any = ()
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    found = [(node, key) for key, _ in items]
    if depth < 6:
        found += [slot for _, value in items for slot in _slots(value, depth + 1)]
    return found


_VALUES = (
    None,
    -1,
    1 << 62,
    1 << 200,
    float('nan'),
    '',
    'x' * 3000,
    [],
    {},
    b'\xff',
    (1, 2),
    True,
    1e308,
    OrderedDict(a=1),
    argparse.Namespace(lr=1),
)


def mutate_content(rng: random.Random, content: Any, marker: str) -> Any:
    """A checkpoint with other contents.

    Args:
        rng: Random numbers.
        content: The loaded checkpoint; it is not changed.
        marker: A file that code in its notes would create.
    """
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = _mutate_once(rng, content, marker)
    return content


def _mutate_once(rng: random.Random, content: Any, marker: str) -> Any:
    if not isinstance(content, dict) or not content:
        return content
    weights = content.get('state_dict')
    weights = weights if isinstance(weights, dict) and weights else content
    name = rng.choice(list(weights))
    kind = rng.randrange(12)
    if kind <= 3:
        tensors = [n for n, value in weights.items() if isinstance(value, Tensor)]
        if tensors:
            name = rng.choice(tensors)
            weights[name] = odd_tensor(rng, weights[name])
    elif kind == 4:
        other = rng.choice((*NAMES, 3, None, (1,), 1.5, b'x', True))
        weights[other] = weights.pop(name)
    elif kind == 5:
        del weights[name]
    elif kind == 6:
        slots = _slots({k: v for k, v in content.items() if k != 'state_dict'})
        if slots:
            node, key = rng.choice(slots)
            values = (*_VALUES, nested(50), cyclic(), torch.zeros(2))
            node[key] = copy.deepcopy(rng.choice(values))
    elif kind == 7:
        content.setdefault('meta', {})
        code = f'open({marker!r}, "w")\nmodel = dict()'
        key = rng.choice(('config', 'cfg', 'CLASSES', 'dataset_meta', 'iter', 'hook'))
        if isinstance(content['meta'], dict):
            content['meta'][key] = copy.deepcopy(rng.choice((code, *_VALUES)))
    elif kind == 8:
        key = rng.choice(list(content))
        values = (*_VALUES, nested(200), cyclic(), torch.zeros(3))
        content[key] = copy.deepcopy(rng.choice(values))
    elif kind == 9:
        content['sparsity'] = rng.choice(
            (
                {},
                {'masks': 3, 'dense': 3},
                {'masks': {name: 'x'}, 'dense': [name]},
                {'masks': {name: torch.zeros(1).expand(1 << 40)}, 'dense': []},
                {'masks': {name: torch.ones(1, dtype=torch.bool)}, 'dense': [[]]},
                3,
            )
        )
    elif kind == 10:
        meta = {
            'dataset_meta': rng.choice(
                (
                    {'classes': [*NAMES], 'palette': [[1, 2, 3]]},
                    {'CLASSES': ('a', 'b', 'c', 'd'), 'PALETTE': [[1 << 70] * 3] * 4},
                    {'classes': 'x' * 9000, 'palette': None, 3: 4},
                    {'classes': cyclic(), 'palette': torch.zeros(1).expand(1 << 40)},
                    {'classes': [['a']], 'palette': [['r', 'g', 'b']]},
                    {'classes': ['a'] * 100_000},
                )
            )
        }
        content['meta'] = rng.choice((meta, {**_as_dict(content.get('meta')), **meta}))
    else:
        wrapper = rng.choice(('model', 'state_dict', 'model_ema', 'params', 'teacher'))
        content = rng.choice(
            (
                {wrapper: content},
                [content],
                content.get('state_dict', content),
                {wrapper: cyclic()},
                nested(300),
                cyclic(),
            )
        )
    return content


def _as_dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def saved(content: Any, zipped: bool = True) -> bytes:
    """The bytes of ``torch.save``, in its present format or that before PyTorch 1.6."""
    file = io.BytesIO()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
    finally:
        sys.setrecursionlimit(limit)
    return file.getvalue()
