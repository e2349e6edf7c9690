"""Lets ``python -m st_simcse`` run the command ``st-simcse``."""

from st_simcse.cli import main

if __name__ == "__main__":
    main()
