# PeLK-S on ImageNet-1K in 120 epochs. Nothing else changes.
_base_ = './pelk_s_300e_in1k.py'

__import__('pelk_mm').engine.set_max_epochs(_base_, 120)
