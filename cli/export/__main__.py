"""``python -m hat_export.cli.export``: as the console script."""

from hat_export.cli.export import main

main()
