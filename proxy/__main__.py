"""``python -m proxy`` is the ``millpond`` command."""

import signal


def main() -> None:
    """Run the command line."""
    # Until a command handles Ctrl-C itself, it ends the process as it ends any other: Python's own
    # handler would print a traceback from the middle of an import. Who started us may ignore it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from proxy import cli  # noqa: PLC0415 - nothing may be imported before that

    cli.main()


if __name__ == "__main__":
    main()
