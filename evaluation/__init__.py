"""The harness: a suite becomes runs, runs become records."""
