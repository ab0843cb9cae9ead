"""Which weights exist, how a name becomes a verified file, how a file is read safely."""
