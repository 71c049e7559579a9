"""The commands of `edgejudge`, a module each with `add_parser` and `run`.

Light to import: whatever is heavy is imported when a command runs. Only edgejudge.cli imports them.
"""
