"""The machine and the terminal: processor, files, locks, progress bars, words while waiting."""
