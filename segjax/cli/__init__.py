"""The command line: `segjax COMMAND`, one module for each command."""
