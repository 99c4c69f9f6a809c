"""Files that would exhaust memory or run code if a data set were read as it is."""

import io
import struct
import zlib

import pytest
from mmengine.config import Config
from PIL import Image

from pelk_mm.engine.dataset_check import check_dataset
from pelk_mm.engine.dataset_check.images import decode_whole


def png(width, height):
    """A file of 8 x 8 pixels that claims others, with a right checksum."""
    file = io.BytesIO()
    Image.new('L', (8, 8)).save(file, 'PNG')
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack('>II', width, height)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize('size', [(60_000, 60_000), (1 << 20, 1 << 9), (4096, 4096)])
def test_image_that_claims_more_than_its_bytes_can_hold(size):
    facts = decode_whole(png(*size))
    assert facts.size == size
    assert facts.fault.startswith(f'claims {size[0] * size[1]:,} pixels in ')


def test_image_of_the_size_that_it_claims():
    assert decode_whole(png(8, 8)).fault == ''


def test_pickled_annotations_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('gc.collect', lambda: 0)
    path = tmp_path / 'annotations.pkl'
    path.write_bytes(b'\x80\x02cposix\nabort\n)R.')
    dataset = dict(
        type='mmdet.BaseDetDataset',
        ann_file=str(path),
        metainfo=dict(classes=('a', 'b')),
        pipeline=[dict(type='LoadImageFromFile')],
    )
    cfg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset)))
    (report,) = check_dataset(cfg)
    (finding,) = report.findings
    assert finding.kind == 'dataset'
    assert 'asks for posix.abort, which could run code' in str(finding)
