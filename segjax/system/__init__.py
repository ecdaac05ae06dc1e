"""The operating system and the terminal: files, locks, progress bars, words while waiting."""
