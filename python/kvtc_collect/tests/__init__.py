"""Opt-in tests: they need the packages of requirements.txt and run on the CPU in seconds."""
