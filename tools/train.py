"""Train a config with the tool of the framework that it is written for.

Takes every flag of mmseg's or mmdet's own ``tools/train.py``.
"""

from pelk_mm.engine.launch import hand_over

if __name__ == '__main__':
    hand_over('train')
