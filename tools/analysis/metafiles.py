"""Write configs/*_metafile.yml: what mm's index says of every config.

Parameters and FLOPs are counted on the meta device; everything else comes from the
configs and from the papers' tables.
"""

import argparse
from pathlib import Path

from pelk_mm.analysis.metafiles import write_metafiles

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def main() -> None:
    """Count and write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    write_metafiles(CONFIGS)


if __name__ == '__main__':
    main()
