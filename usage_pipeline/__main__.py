"""Entry point: a signal is handled from the first moment, before a second of imports."""

from usage_pipeline.infra import interrupts


def main() -> None:
    """`usage-pipeline`."""
    interrupts.install()
    from usage_pipeline.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
