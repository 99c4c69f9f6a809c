import pytest
import torch

from pelk_mm.analysis.sparsity_report import format_table, read_layers


def test_masks_say_what_was_promised():
    first = torch.ones(4, 5)
    first[:, :2] = 0
    state = {
        'backbone.a.weight': first,
        'backbone.b.weight': torch.ones(3, 1, 3, 3),
        'head.weight': torch.ones(2, 2),
    }
    masks = {'backbone.a.weight': state['backbone.a.weight'] != 0}
    sparsity = dict(masks=masks, dense=['head.weight'])
    layers = read_layers(dict(state_dict=state, sparsity=sparsity))
    assert [layer.name for layer in layers] == ['backbone.a.weight', 'head.weight']
    assert format_table(layers).endswith(
        'The masks leave 16 weights active; as many are not zero.'
    )
    state['head.weight'][0] = 0
    assert format_table(layers).endswith('active; 14 are not zero.')


def test_plain_weights_without_a_backbone():
    norm = {'norm.weight': torch.ones(3)}
    layers = read_layers({'stem.weight': torch.ones(2, 3)} | norm)
    assert [layer.name for layer in layers] == ['stem.weight']
    with pytest.raises(ValueError, match='no 2-D or 4-D weights'):
        read_layers(norm)


WEIGHT = torch.ones(2, 3)


@pytest.mark.parametrize(
    ('state', 'sparsity', 'reason'),
    [
        (WEIGHT.to_sparse(), None, 'sparse or quantized'),
        (torch.zeros(1, 1).expand(1 << 20, 1 << 20), None, 'repeats one value'),
        (torch.empty(2, 2, device='meta'), None, 'without values'),
        (WEIGHT + 1j, None, 'complex'),
        (WEIGHT, {}, 'no masks'),
        (WEIGHT, dict(masks=3, dense=[]), 'no masks'),
        (WEIGHT, dict(masks={'w': 'x'}, dense=[]), 'where weights have a tensor'),
        (WEIGHT, dict(masks={'w': WEIGHT}, dense=[]), r'not of torch\.bool'),
        (
            WEIGHT,
            dict(masks={'w': torch.ones(1).bool().expand(1 << 40)}, dense=[]),
            'repeats one value',
        ),
    ],
    ids=range(9),
)
def test_what_is_no_ordinary_tensor(state, sparsity, reason):
    with pytest.raises(ValueError, match=reason):
        read_layers(dict(state_dict={'w': state}, sparsity=sparsity))


def test_names_cannot_steer_a_terminal():
    layers = read_layers({'a\x1b[2J.weight': WEIGHT})
    assert '\x1b' not in format_table(layers)
