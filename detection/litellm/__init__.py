"""This gateway as a guardrail of a LiteLLM proxy."""
