# SLaK-T on ImageNet-1K in 120 epochs: 81.6 top-1, by the table of its released models.
# Nothing else changes.
_base_ = './slak_t_300e_in1k.py'

__import__('pelk_mm').engine.set_max_epochs(_base_, 120)
