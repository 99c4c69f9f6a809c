"""Write configs/*_metafile.yml: what mm's index says of every config.

Parameters and FLOPs are counted on the meta device; everything else comes from the
configs and from the papers' tables.
"""

import argparse


def main() -> None:
    """Count and write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.analysis.metafiles import write_metafiles
    from pelk_mm_cli import config_folder

    write_metafiles(config_folder())


if __name__ == '__main__':
    main()
