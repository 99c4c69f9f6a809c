"""Whatever a checkpoint holds, the tool converts or refuses it and leaves no halves."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .test_convert_checkpoint import released, saved, tool


@pytest.fixture(scope='module')
def fuzzed(tmp_path_factory):
    """Runs the tool on bytes or an object; checks what must hold whatever they are."""
    folder = tmp_path_factory.mktemp('fuzz')
    source, destination = folder / 'src.pth', folder / 'dst.pth'

    def run(content, *options):
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            torch.save(content, source)
        code = tool.main([str(source), str(destination), *options])  # raises nothing
        assert code in (0, 1, 3)
        assert destination.exists() == (code != 1)
        if destination.exists():
            torch.load(destination, weights_only=True)
            destination.unlink()
        assert list(folder.iterdir()) == [source]
        return code

    return run


FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
FORMATS = {
    new: saved({'model': released()}, _use_new_zipfile_serialization=new)
    for new in (True, False)
}


@pytest.mark.long
@FUZZ
@given(data=st.data(), new=st.booleans())
def test_fuzzed_bytes(fuzzed, data, new):
    content = bytearray(FORMATS[new])
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the places are where the structure is: pickle and directory.
        span = data.draw(st.sampled_from([len(content), 3000]))
        place = data.draw(st.integers(0, span - 1))
        content[place if data.draw(st.booleans()) else -1 - place] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.integers(0, 50))
    fuzzed(bytes(content[: len(content) - cut * (cut > 40)]))


NAMES = st.one_of(
    st.sampled_from(sorted(released())),
    st.from_regex(
        r'(module\.|backbone\.|decode_head\.)?'
        r'(stages\.\d{1,9}\.|norm\d\.|stem\.\d\.|downsample_layers\.\d\.)?'
        r'(\d{1,9}\.|blocks\.\d\.)?(gamma|pwconv1\.weight|large_kernel\.lkb_origin\.'
        r'conv\.weight|mixer\.large\.weight|position_embedding|conv\.weight|0\.weight)',
        fullmatch=True,
    ),
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 5, 6, 16]), max_size=4)


@pytest.mark.long
@FUZZ
@given(
    removed=st.sets(st.sampled_from(sorted(released())), max_size=4),
    added=st.dictionaries(NAMES, SHAPES, max_size=4),
    alone=st.booleans(),
    options=st.sampled_from(
        [
            (),
            ('--no-strict',),
            ('--no-strict', '--warm-start', 'pelk'),
            ('--to', 'official', '--no-strict'),
        ]
    ),
)
def test_fuzzed_names(fuzzed, removed, added, alone, options):
    weights = {} if alone else released()
    weights = {key: value for key, value in weights.items() if key not in removed}
    weights |= {name: torch.zeros(shape) for name, shape in added.items()}
    fuzzed(weights, *options)
