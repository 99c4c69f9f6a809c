"""Damage of checkpoint files as bytes: archives, pickles, headers of safetensors."""

import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable

#: What a hostile pickle asks for; ``{}`` is a file that it would create.
GLOBALS = (
    ('os', 'system', ('touch {}',)),
    ('posix', 'system', ('touch {}',)),
    ('builtins', 'exec', ("open({!r}, 'w')",)),
    ('builtins', 'eval', ("open({!r}, 'w')",)),
    ('builtins', 'open', ('{}', 'w')),
    ('io', 'open', ('{}', 'w')),
    ('pathlib', 'Path.touch', ()),
    ('subprocess', 'getoutput', ('touch {}',)),
    ('numpy', 'memmap', ('{}', 'uint8', 'w+', 0, (9,))),
    ('numpy.testing._private.utils', 'runstring', ("open({!r}, 'w')", {})),
    ('torch.hub', 'load_state_dict_from_url', ('http://127.0.0.1:9/{}',)),
    ('torch', 'load', ('{}',)),
    ('torch.serialization', 'load', ('{}',)),
    ('torch.storage', '_load_from_bytes', (b'',)),
    ('builtins', 'getattr', ('', 'format')),
    ('operator', 'attrgetter', ('__class__',)),
    ('mmengine.config', 'Config.fromstring', ("open({!r}, 'w')", '.py')),
    ('codecs', 'open', ('{}', 'w')),
    ('logging', 'FileHandler', ('{}',)),
)


def hostile_pickle(rng: random.Random, marker: str) -> bytes:
    """A pickle that would create the file `marker` if it were run."""
    module, name, arguments = rng.choice(GLOBALS)
    filled = tuple(
        argument.format(marker) if isinstance(argument, str) else argument
        for argument in arguments
    )
    call = b'c' + f'{module}\n{name}\n'.encode() + pickle.dumps(filled, 2)[2:-1] + b'R'
    if rng.random() < 0.5:  # at the place of a weight rather than of everything
        key = pickle.dumps('state_dict', 2)[2:-1]
        call = b'}' + key + b'}' + pickle.dumps('a.weight', 2)[2:-1] + call + b'ss'
    return b'\x80\x02' + call + b'.'


# ----------------------------------------------------------------------------- bytes


def flip(rng: random.Random, content: bytes) -> bytes:
    """A few bytes changed, half of them where the structure is: near either end."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        span = rng.choice((len(content), min(3000, len(content))))
        place = rng.randrange(span)
        place = place if rng.random() < 0.5 else -1 - place
        damaged[place] = rng.choice((0, 255, rng.randrange(256), damaged[place] ^ 1))
    return bytes(damaged)


def truncate(rng: random.Random, content: bytes) -> bytes:
    """The beginning, or without its beginning."""
    place = rng.choice((rng.randrange(len(content)), rng.randrange(64)))
    return content[:place] if rng.random() < 0.8 else content[place:]


def splice(rng: random.Random, content: bytes) -> bytes:
    """Parts doubled, removed, exchanged or filled with zeros."""
    a, b = sorted(rng.randrange(len(content)) for _ in range(2))
    return rng.choice(
        (
            content[:b] + content[a:],
            content[:a] + content[b:],
            content[b:] + content[:b],
            content[:a] + bytes(b - a) + content[b:],
            content + content[a:b],
            b'PK\x03\x04' + content[a:],
        )
    )


def replace_number(rng: random.Random, content: bytes) -> bytes:
    """A 2, 4 or 8-byte number somewhere made extreme."""
    form = rng.choice(('<H', '<I', '<Q', '>I'))
    size = struct.calcsize(form)
    most = (1 << (8 * size)) - 1
    value = rng.choice((0, 1, most, most >> 1, (most >> 1) + 1, rng.randrange(most)))
    span = rng.choice((len(content), min(2000, len(content)))) - size
    place = rng.randrange(max(1, span))
    place = place if rng.random() < 0.5 else max(0, len(content) - size - place)
    return content[:place] + struct.pack(form, value) + content[place + size :]


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip,
    truncate,
    splice,
    replace_number,
)

# ------------------------------------------------------------------------------ zips


def read_zip(content: bytes) -> OrderedDict[str, bytes]:
    """Records of an archive by name, in its order."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return OrderedDict((name, archive.read(name)) for name in archive.namelist())


def write_zip(
    records: list[tuple[str, bytes]],
    compression: int = zipfile.ZIP_STORED,
    links: bool = False,
) -> bytes:
    """An archive of records, whose names may repeat; as symbolic links if asked for."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression, compresslevel=1) as archive:
        for name, data in records:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.external_attr = (0o120777 if links else 0o600) << 16
            archive.writestr(info, data)
    return file.getvalue()


def mutate_zip(rng: random.Random, content: bytes, marker: str) -> bytes:
    """An archive with another structure, sound or not."""
    records = list(read_zip(content).items())
    number = rng.randrange(len(records))
    name, data = records[number]
    names = {n.rpartition('/')[2]: i for i, (n, _) in enumerate(records)}
    folder = name.partition('/')[0]
    kind = rng.randrange(12)
    if kind == 0:  # a name twice, with other contents
        records.insert(rng.randrange(len(records) + 1), (name, flip(rng, data or b'0')))
    elif kind == 1:
        del records[number]
    elif kind == 2:  # names that lead elsewhere
        outside = rng.choice((f'../{name}', marker, f'{folder}/../../x', 'C:\\x', ''))
        records[number] = (outside, data)
    elif kind == 3:
        records.append((rng.choice((marker, '../../x', f'{folder}/data/..')), b'x'))
    elif kind == 4:
        return write_zip(records, rng.choice((8, 12, 14)))
    elif kind == 5:  # of a thousandth of its size
        bomb = bytes(rng.choice((1 << 20, 1 << 20, 1 << 27)))
        records.append((f'{folder}/data/bomb', bomb))
        return write_zip(records, zipfile.ZIP_DEFLATED)
    elif kind == 6 and 'data.pkl' in names:
        at = names['data.pkl']
        records[at] = (records[at][0], hostile_pickle(rng, marker))
    elif kind == 7 and 'data.pkl' in names:
        at = names['data.pkl']
        records[at] = (records[at][0], mutate_pickle(rng, records[at][1]))
    elif kind == 8:
        return write_zip(records, links=True)
    elif kind == 9:
        return lie_in_directory(rng, content)
    elif kind == 10:
        extra = rng.choice(('constants.pkl', 'byteorder', '.format_version', 'version'))
        record = (f'{folder}/{extra}', rng.choice((b'', b'big', b'\x80\x02}.', b'999')))
        records.append(record)
    else:
        records[number] = (name, rng.choice((b'', data[: len(data) // 2], data * 2)))
    return write_zip(records)


def lie_in_directory(rng: random.Random, content: bytes) -> bytes:
    """Another number in a header of an archive: sizes, offsets, checksums, counts."""
    marks, fields = rng.choice(
        (
            (b'PK\x01\x02', (4, 6, 8, 10, 16, 20, 24, 28, 30, 32, 38, 42)),
            (b'PK\x03\x04', (4, 6, 8, 14, 18, 22, 26, 28)),
            (b'PK\x05\x06', (4, 8, 10, 12, 16, 20)),
        )
    )
    places = []
    place = content.find(marks)
    while place >= 0 and len(places) < 200:
        places.append(place)
        place = content.find(marks, place + 4)
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.choice(places) + rng.choice(fields)
        value = rng.choice((0, 1, 8, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(1 << 32)))
        damaged[at : at + 4] = struct.pack('<I', value)
    return bytes(damaged[: len(content)])


def fix_checksums(content: bytes) -> bytes:
    """The archive with the checksums of its damaged records set right."""
    damaged = bytearray(content)
    at = content.find(b'PK\x01\x02')
    while at >= 0:
        size, offset = struct.unpack_from('<I', content, at + 20)[0], 0
        offset = struct.unpack_from('<I', content, at + 42)[0]
        if content[offset : offset + 4] == b'PK\x03\x04':
            lengths = struct.unpack_from('<HH', content, offset + 26)
            start = offset + 30 + sum(lengths)
            sum_ = struct.pack('<I', zlib.crc32(content[start : start + size]))
            damaged[at + 16 : at + 20] = sum_
            damaged[offset + 14 : offset + 18] = sum_
        at = content.find(b'PK\x01\x02', at + 4)
    return bytes(damaged)


# --------------------------------------------------------------------------- pickles

_OPCODES = (
    b'().0123BCFGIJKLMNPQRSTUVXYZ]abcdeghijlopqrstu}'
    b'\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x90\x93\x94\x95'
)


def mutate_pickle(rng: random.Random, content: bytes) -> bytes:
    """Opcodes replaced, inserted, repeated; memo numbers and lengths made extreme."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(2, max(3, len(damaged) - 1))
        kind = rng.randrange(7)
        if kind == 0:
            damaged[place : place + 1] = bytes([rng.choice(_OPCODES)])
        elif kind == 1:
            damaged[place:place] = bytes([rng.choice(_OPCODES)])
        elif kind == 2:  # a memo slot of four thousand millions
            damaged[place:place] = b'r\xff\xff\xff\xff'
        elif kind == 3:  # a string of that length
            damaged[place:place] = rng.choice((b'X', b'B', b'T', b'\x8b'))
            damaged[place + 1 : place + 1] = b'\xff\xff\xff\x7f'
        elif kind == 4:  # nested too deeply for recursion
            depth = rng.choice((100, 5000, 200_000))
            damaged[place:place] = b'(' * depth + b't' * depth
        elif kind == 5:  # a dict in itself, or numbers of shapes
            damaged[place:place] = rng.choice(
                (b'}q\x01h\x01h\x01s', b'J\xff\xff\xff\x7f', b'\x8a\x09' + b'\x7f' * 9)
            )
        else:
            end = min(len(damaged), place + rng.randrange(1, 40))
            damaged[place:place] = damaged[place:end] * rng.choice((1, 3, 1000))
    return bytes(damaged)


# ----------------------------------------------------------------------- safetensors


def mutate_safetensors(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file with another header: lengths, offsets, dtypes, names."""
    length = struct.unpack_from('<Q', content)[0]
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != '__metadata__']
    name = rng.choice(names)
    entry = header[name]
    start, end = entry['data_offsets']
    kind = rng.randrange(10)
    if kind == 0:
        lie = rng.choice((0, 1, length + 1, 1 << 31, 1 << 40, (1 << 64) - 1))
        return struct.pack('<Q', lie) + content[8:]
    if kind == 1:
        entry['data_offsets'] = rng.choice(
            ([0, 1 << 40], [end, start], [start - 1, end], [0, 0], [1 << 63, 1 << 63])
        )
    elif kind == 2:  # over another's
        entry['data_offsets'] = header[rng.choice(names)]['data_offsets']
    elif kind == 3:
        entry['dtype'] = rng.choice(('F64', 'I8', 'BOOL', 'F8_E4M3', 'U64', 'x', 7))
    elif kind == 4:
        entry['shape'] = rng.choice(
            ([1 << 62, 4], [-1], [], [0], [1] * 1000, ['a'], [1 << 32, 1 << 32])
        )
    elif kind == 5:
        other = rng.choice(('../x', '', 'a\x1b[2Jb', 'a\nb', 'n' * 100_000, '\ud800'))
        header[other] = header.pop(name)
    elif kind == 6:
        notes = rng.choice(('[' * 100_000, '{"a":', '7', '{"dataset_meta": 3}', '[]'))
        header['__metadata__'] = {'meta': notes}
    elif kind == 7:
        header['__metadata__'] = rng.choice(({'meta': 3}, [], 'x', None))
    elif kind == 8:
        del header[name]
    else:
        nested = '{"a":' * rng.choice((10, 100_000))
        text = nested.encode()
        return struct.pack('<Q', len(text)) + text + content[8 + length :]
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + content[8 + length :]
