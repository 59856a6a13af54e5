"""Runs suites of experiments: one YAML file describes the runs, and a report shows their table and figures."""
