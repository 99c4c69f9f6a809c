"""FSDP by mmengine: two processes and one iteration, or torch's reason."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import FlexibleRunner
from torch import distributed

from pelk_mm.backbones import PeLK

SIZES = dict(channels=(8, 12), depths=(1, 1), kernel_sizes=(15, 7), central_radius=1)


class Segmenter(BaseModel):
    """A backbone and the smallest of losses."""

    def __init__(self):
        super().__init__()
        self.backbone = PeLK(SIZES, out_indices=(0, 1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.backbone(torch.stack(inputs))
        return dict(loss=sum(m.square().mean() for m in maps))


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason='torch is built without')
def test_one_iteration_or_the_documented_reason(make_small, kills, tmp_path):
    """`docs/ranks.md` quotes the reason."""

    def train(rank):
        # The data of the small training, in the runner that has strategies.
        small = make_small(tmp_path / f'small_{rank}')
        runner = FlexibleRunner(
            model=Segmenter(),
            work_dir=str(tmp_path / 'out'),
            strategy=dict(
                type='FSDPStrategy',
                model_wrapper=dict(
                    type='MMFullyShardedDataParallel',
                    use_orig_params=True,
                    device_id=None,
                ),
                state_dict_cfg='full',
            ),
            train_dataloader=small._train_dataloader,
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
            launcher='pytorch',
            experiment_name=f'fsdp_{rank}',
            default_scope='mmengine',
            log_level='ERROR',
        )
        try:
            runner.train()
        except RuntimeError as error:
            return str(error)
        return [value.detach().cpu() for value in runner.model.state_dict().values()]

    first, second = kills.run_two_ranks(tmp_path / 'ranks', train)
    if isinstance(first, str):
        assert not torch.cuda.is_available()
        assert first == second
        assert 'FSDP needs a non-CPU accelerator device' in first
    else:
        assert all(map(torch.equal, first, second))
