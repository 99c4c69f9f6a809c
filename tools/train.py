"""Train a config with the tool of the framework that it is written for.

Takes every flag of mmseg's, mmdet's or mmpretrain's own ``tools/train.py``, and
``--pretrained CHECKPOINT``, which starts the backbone from the one in that file.
"""

import argparse
import sys


def main() -> None:
    """Take --pretrained out of the command line and hand the rest over."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--pretrained', metavar='CHECKPOINT')
    args, rest = parser.parse_known_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.checkpoints.files import CheckpointError
    from pelk_mm.checkpoints.guard import backbone_init
    from pelk_mm.engine.launch import hand_over

    sys.argv[1:] = rest
    if args.pretrained:
        try:
            init = backbone_init(args.pretrained)
        except CheckpointError as error:
            sys.exit(f'train: {error}')
        sys.argv.append('--cfg-options')
        sys.argv += [f'model.backbone.init_cfg.{key}={init[key]}' for key in init]
    try:
        hand_over('train')
    finally:
        if {'-h', '--help'} & set(rest):
            print('\nand, of pelk_mm:')
            print('  --pretrained CHECKPOINT')
            print(
                '                        start the backbone from the one in this file'
            )


if __name__ == '__main__':
    main()
