"""Shared by all rooms: command lines, atomic files, benchmark tables, plots."""
