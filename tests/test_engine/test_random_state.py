import random

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from pelk_mm.engine.random_state import (
    IterationSeedHook,
    random_state_kept,
    seed_everything,
)


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seeding_covers_all_generators():
    seed_everything(7)
    first = draw()
    assert first != draw()
    seed_everything(7 + 2**32)
    assert draw() == first


def test_state_is_kept():
    seed_everything(1)
    first, second = draw(), draw()
    seed_everything(1)
    assert draw() == first
    with random_state_kept():
        seed_everything(99)
        draw()
    assert draw() == second


class Noise(BaseModel):
    """Its loss is what the three generators drew for the batch and the model."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, inputs, mode='tensor'):
        self.seen.append((float(inputs[0]), draw()))
        return dict(loss=self.weight * 1.0)


class Draws:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.tensor(sum(draw()) + index))


def train(work_dir, epochs, name, **kwargs):
    loop = (
        dict(type='EpochBasedTrainLoop', max_epochs=4)
        if epochs
        else dict(type='IterBasedTrainLoop', max_iters=12)
    )
    runner = Runner(
        model=Noise(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Draws(),
            batch_size=2,
            num_workers=0,
            sampler=dict(
                type='DefaultSampler' if epochs else 'InfiniteSampler', shuffle=True
            ),
        ),
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=epochs, interval=2 if epochs else 5
            )
        ),
        custom_hooks=[IterationSeedHook()],
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}_{name}',
        default_scope='mmengine',
        **kwargs,
    )
    runner.train()
    return runner.model.seen


def test_a_resumed_run_draws_the_same(tmp_path):
    for epochs, saved, start in ((False, 'iter_5.pth', 5), (True, 'epoch_2.pth', 8)):
        whole = train(tmp_path, epochs, f'{epochs}_whole')
        assert len(set(whole)) == len(whole)
        rest = train(
            tmp_path,
            epochs,
            f'{epochs}_rest',
            resume=True,
            load_from=str(tmp_path / saved),
        )
        assert rest == whole[start:]
