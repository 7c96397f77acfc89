"""The verbs of the command line, which ``tasks.py`` puts together. Each imports what it needs when it runs: those that
only read are quick."""
