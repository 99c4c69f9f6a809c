"""Bring the backbone of a trained segmenter or detector into its deployment form.

BatchNorms, small kernels, PeLK's positional embedding and layer scales are folded
into the convolutions; the model computes the same with fewer modules.
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Read the command line, write the checkpoint and say what was folded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config that the model was trained with')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--force', action='store_true', help='replace OUT if it exists')
    args = parser.parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.checkpoints.files import CheckpointError
    from pelk_mm.conversion.deploy import deploy_checkpoint

    try:
        report = deploy_checkpoint(args.config, args.checkpoint, args.out, args.force)
    except CheckpointError as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    before, after = report.parameters
    print(f'{report.backbone}: {before:,} parameters became {after:,}')
    for kind, count in report.folded.items():
        print(f'  {count:4d} {kind} folded')
    print(f'  largest relative difference on a random image: {report.difference:.1e}')
    print(f'{args.out} loads with --cfg-options model.backbone.deploy=True')


if __name__ == '__main__':
    main()
