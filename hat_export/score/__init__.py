"""The hierarchical alignment score: its features, its reduced form, and the recall made from it."""
