"""Graph passes, one per file. The file's name is the pass's name in recipes."""
