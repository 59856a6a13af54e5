"""Suites of experiments: from one YAML file to runs, a table and figures."""
