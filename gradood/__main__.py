"""``python -m gradood``: the same as the ``gradood`` command."""

from gradood.cli import main

if __name__ == "__main__":
    main()
