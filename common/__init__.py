"""What every room needs and none should write twice: command lines, safe files, benchmark tables."""
