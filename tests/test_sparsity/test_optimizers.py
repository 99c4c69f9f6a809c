import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from pelk_mm.sparsity.optimizers import accumulative_counts, find_optim_wrapper


def wrap(module, counts=1):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return OptimWrapper(optimizer, accumulative_counts=counts)


def test_the_wrapper_that_trains_all_weights_is_found():
    first, second = nn.Linear(2, 3), nn.Linear(3, 4)
    wrappers = OptimWrapperDict(first=wrap(first, 2), second=wrap(second, 4))
    found = find_optim_wrapper(wrappers, dict(w=second.weight))
    assert found is wrappers['second']
    assert accumulative_counts(found) == 4
    alone = wrap(nn.ModuleList([first, second]))
    assert find_optim_wrapper(alone, dict(w=first.weight, v=second.weight)) is alone
    with pytest.raises(ValueError, match='no optimizer trains all weights'):
        find_optim_wrapper(wrappers, dict(w=first.weight, v=second.weight))


def test_a_wrapper_that_does_not_tell_is_refused():
    wrapper = wrap(nn.Linear(2, 3))
    del wrapper._accumulative_counts
    message = r"OptimWrapper in mmengine \d.* has no _accumulative_counts.*mode='off'"
    with pytest.raises(RuntimeError, match=message):
        accumulative_counts(wrapper)
