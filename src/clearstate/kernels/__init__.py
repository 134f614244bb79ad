"""Speed, nothing else: every function here has a readable twin elsewhere, and a test that holds the two together."""
