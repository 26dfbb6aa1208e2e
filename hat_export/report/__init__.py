"""Results as JSON, Markdown, HTML and text: one report, rendered from the same data."""
