"""The machine and the terminal: processor, files, locks, progress bars, notices of long waits."""
