"""`python -m pelk_mm TOOL ...` is `pelk-mm TOOL ...`."""

from pelk_mm_cli import main

if __name__ == '__main__':
    main()
