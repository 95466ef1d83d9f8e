"""The flows stage: who talks to whom, beside the path."""
