"""Strongroom beside other backup tools: one set of workloads, every tool driven and measured from outside in the same way."""
