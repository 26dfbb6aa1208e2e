"""``python -m hat_export.cli.bench``: as the console script."""

from hat_export.cli.bench import main

main()
