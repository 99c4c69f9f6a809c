"""Damage of what tools read beside checkpoints: JSON, YAML, configs, logs, images."""

import copy
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from .mutate_archives import BYTES

#: What stands in the place of a value of JSON; texts are JSON that Python cannot dump.
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1 << 62,
    1 << 70,
    10**400,
    1e308,
    float('nan'),
    float('inf'),
    '',
    'x' * 3000,
    '\ud800',
    'a\x1b[2J\x00b',
    '../../outside/x',
    '$\\frac{$',
    [],
    {},
    [[]],
    [1, 2],
    {'a': 1},
    [float('nan')] * 4,
    -0.0,
    [1e9] * 8,
    [[1e9, 0, 0, 1e9, 1e12, 5]],
    {'size': [100_000, 100_000], 'counts': '0'},
    {'size': [1 << 40, 1 << 40], 'counts': [1 << 62, 1 << 62]},
    {'size': [32, 32], 'counts': 'o' * 100_000},
    {'size': [32, 32], 'counts': [1024, -5, 5]},
    {'size': [-32, -32], 'counts': [1024]},
)


def _slots(node: Any) -> list[tuple[Any, Any]]:
    """Containers and keys of everything in a document."""
    items: Any = ()
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    found = [(node, key) for key, _ in items]
    return found + [slot for _, value in items for slot in _slots(value)]


def mutate_json(rng: random.Random, text: str) -> bytes:
    """A document with other values, keys, nesting or bytes."""
    document = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        slots = _slots(document)
        if not slots:
            break
        node, key = rng.choice(slots)
        kind = rng.randrange(5)
        if kind <= 1:
            # A copy: what goes into it would be there in all later cases.
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 2:
            del node[key]
        elif kind == 3 and isinstance(node, list):
            node.extend(json.loads(json.dumps([node[key]])) * rng.choice((1, 50)))
        elif kind == 3:
            node[rng.choice(('', 'id', 'type', '_base_', 'a.b', '_delete_'))] = 3
        else:
            other, other_key = rng.choice(slots)
            node[key] = json.loads(json.dumps(other[other_key]))
    # Python's own limit on the digits of an integer is part of what is tested.
    content = _dump(document).encode(errors='surrogatepass')
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice(BYTES)(rng, content)
    if kind == 1:
        depth = rng.choice((50, 900, 100_000))
        opening, closing = rng.choice((('[', ']'), ('{"a":', '}')))
        deep = opening * depth + '1' + closing * rng.choice((depth, 0))
        return content.replace(b'1', deep.encode(), 1)
    if kind == 2:
        return content.replace(b'1', b'9' * rng.choice((30, 10_000)), 1)
    if kind == 3:
        return rng.choice(
            (b'', b'null', b'[]', b'{}', b'3', b'"x"', content * 2, b'\xff\xfe', b'NaN')
        )
    return content


def _dump(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


def as_yaml(rng: random.Random, content: bytes, marker: str) -> bytes:
    """JSON as YAML, which it is, and what only YAML has."""
    tag = rng.choice(
        (
            f'!!python/object/apply:os.system ["touch {marker}"]',
            f'!!python/object/apply:builtins.open ["{marker}", "w"]',
            f'!!python/object/new:os.system ["touch {marker}"]',
            '!!python/name:os.system',
            '!!python/module:antigravity',
            '!!binary "eA=="',
        )
    ).encode()
    laughs = b'a0: &a0 [x, x]\n' + b''.join(
        f'a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n'.encode()
        for i in range(1, 40)
    )
    return rng.choice(
        (
            content,
            b'evil: ' + tag + b'\nmodel: {}\n',
            b'model: ' + tag,
            laughs,
            b'a: &a [*a]\n',
            b'a: &a {b: *a}\nmodel: *a\n',
            b'- ' * 5000,
            b'%YAML 9.9\n---\n' + content,
            content.replace(b'"', b"'"),
            b'_base_: ./x.yaml\n',
            b'_base_: [../../outside/kept]\n',
        )
    )


def mutate_python(rng: random.Random, text: str) -> bytes:
    """A config of Python, other or no Python at all; nothing in it takes long."""
    lines = text.strip().splitlines()
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(BYTES)(rng, text.encode())
    if kind == 1:
        del lines[rng.randrange(len(lines))]
    elif kind == 2:
        lines.insert(rng.randrange(len(lines)), rng.choice(('}', 'x = y', 'raise 3')))
    elif kind == 3:
        depth = rng.choice((50, 150, 50_000))
        lines.append('x = ' + '(' * depth + '1' + ')' * depth)
    elif kind == 4:
        lines.append(rng.choice(("_base_ = 'config.py'", "_base_ = ['./no.py']")))
    elif kind == 5:
        lines.append(
            rng.choice(
                (
                    "x = '{{ fileDirname }}{{ $NOTHING }}'",
                    'x = {{_base_.model}}',
                    'import sys; sys.exit(3)',
                    'raise SystemExit',
                    'raise MemoryError',
                    'def f():\n    return f()\nx = f()',
                    'from mmengine.config import read_base\nwith read_base():\n'
                    '    from .no import *',
                )
            )
        )
    elif kind == 6:
        name = rng.choice(('model', 'default_scope', 'train_dataloader', 'dataset'))
        lines.append(f'{name} = {rng.choice(VALUES[:6] + VALUES[16:20])!r}')
    elif kind == 7:
        name = rng.choice(('type', 'arch', 'backbone', 'decode_head', 'pipeline'))
        value = rng.choice((*VALUES[:5], *VALUES[10:20], 'no.such.Thing', 'mmseg.X'))
        part = rng.choice(('model', 'model["backbone"]', 'train_dataloader'))
        lines.append(f'{part}[{name!r}] = {value!r}')
    else:
        return '\n'.join(lines[: rng.randrange(len(lines))]).encode()
    return '\n'.join(lines).encode(errors='surrogatepass')


def mutate_log(rng: random.Random, text: str) -> bytes:
    """A log of JSON lines, some of which are others."""
    lines = text.strip().splitlines()
    for _ in range(rng.choice((1, 2, 3))):
        number = rng.randrange(len(lines))
        changed = mutate_json(rng, text.strip().splitlines()[number])
        lines[number] = changed.decode(errors='replace')
    content = '\n'.join(lines).encode(errors='surrogatepass')
    return rng.choice(BYTES)(rng, content) if rng.random() < 0.1 else content


def mutate_png(rng: random.Random, content: bytes) -> bytes:
    """A PNG with another header under a right checksum, or other bytes."""
    if rng.random() < 0.5:
        return rng.choice(BYTES)(rng, content)
    header = bytearray(content[16:29])
    for _ in range(rng.choice((1, 2))):
        if rng.random() < 0.6:
            side = rng.choice((0, 1, 31, 30_000, 65_000, 1 << 24, (1 << 31) - 1))
            struct.pack_into('>I', header, rng.choice((0, 4)), side)
        else:
            header[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 99))
    checksum = struct.pack('>I', zlib.crc32(b'IHDR' + bytes(header)))
    return content[:16] + bytes(header) + checksum + content[33:]


def mutate_image(rng: random.Random, content: bytes) -> bytes:
    """An image with other bytes."""
    if content.startswith(b'\x89PNG'):
        return mutate_png(rng, content)
    return rng.choice(BYTES)(rng, content)


Damage = Callable[[random.Random, bytes], bytes]
