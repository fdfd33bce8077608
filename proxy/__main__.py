"""``python -m proxy`` is the ``millpond`` command."""

import signal


def main() -> None:
    """Run the command line."""
    # Until a command handles Ctrl-C itself, it ends the process as it ends any other: Python's own
    # handler would print a traceback from the middle of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from proxy import cli  # noqa: PLC0415 - nothing may be imported before that

    cli.main()


if __name__ == "__main__":
    main()
