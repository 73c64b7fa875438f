"""Entry point of the command `weft`; what it does is in `services.command`."""

import sys


def main() -> None:
    """Runs the command. Ctrl-C ends it quietly, however early it comes."""
    try:
        from services.command import run_command

        run_command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
