"""``python -m fedistill``: the command line where the script is not on the path."""

from fedistill.cli.main import main

if __name__ == "__main__":
    main()
