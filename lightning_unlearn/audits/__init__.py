"""Audits: one module a question asked of stored models, and what they share.

An audit reads its models with `audited_models`, runs them with `policy_comparison` or on the states of `probe_data`,
keeps partial results and writes its files with `outputs`, and stores them as a run of its own with `tracking.runs`.
"""
