"""Moves jobs: submit, dispatch, record, sweep, operate."""
