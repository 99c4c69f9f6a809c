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
