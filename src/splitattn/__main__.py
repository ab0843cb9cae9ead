"""`python -m splitattn` is `splitattn`."""


def run() -> None:
    """Run the command line, and end quietly if Ctrl-C comes while it is still being imported."""
    try:
        from splitattn.cli import main

        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    run()
