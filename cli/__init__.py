"""The command line: options in, an answer on stdout, everything else on stderr."""
