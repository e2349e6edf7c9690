"""``python -m st_simcse`` is ``st-simcse``."""

from st_simcse.cli import main

if __name__ == "__main__":
    main()
