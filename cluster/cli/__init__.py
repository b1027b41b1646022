"""The moemesh command, one file per verb."""
