"""Test a checkpoint with the tool of the framework that its config is written for.

Takes every flag of mmseg's or mmdet's own ``tools/test.py``, and ``--prepare float32``
or ``bfloat16``, which tests the model in the form of `prepare_for_inference`.
"""

import argparse
import sys

DTYPES = ('float32', 'bfloat16')


def main() -> None:
    """Take --prepare out of the command line and hand the rest over."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--prepare', choices=DTYPES)
    args, rest = parser.parse_known_args()
    if {'-h', '--help'} & set(rest):
        print(f'  --prepare {{{",".join(DTYPES)}}}  prepare the model for inference')
        print('and every flag of:', flush=True)
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.engine.launch import hand_over

    sys.argv[1:] = rest
    if args.prepare:
        import pelk_mm.inference.prepare_hook  # noqa: F401 - registers it

        hook = 'default_hooks.prepare_for_inference'
        sys.argv += ['--cfg-options', f'{hook}.type=PrepareForInferenceHook']
        sys.argv += [f'{hook}.dtype={args.prepare}']
    hand_over('test')


if __name__ == '__main__':
    main()
