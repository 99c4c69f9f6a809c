"""Test a checkpoint with the tool of the framework that its config is written for.

Takes every flag of mmseg's or mmdet's own ``tools/test.py``.
"""

from pelk_mm.engine.launch import hand_over

if __name__ == '__main__':
    hand_over('test')
