"""`python -m clearstate` is `clearstate`, also where scripts are not on the path."""

from clearstate.cli import main

if __name__ == "__main__":
    main()
