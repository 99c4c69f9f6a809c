import pytest

from pelk_mm import processor


@pytest.mark.parametrize(
    ('flags', 'has'),
    [('fpu avx2 f16c', False), ('fpu avx512_bf16', True), (None, None)],
)
def test_bfloat16_of_the_processor(monkeypatch, flags, has):
    fields = {} if flags is None else dict(flags=flags)
    monkeypatch.setattr(processor, 'cpu_fields', lambda: fields)
    assert processor.multiplies_bfloat16() is has
