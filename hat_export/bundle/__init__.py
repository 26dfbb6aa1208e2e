"""A bundle: the folder that an export writes and a session opens, its checks and its signature."""
