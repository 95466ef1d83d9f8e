"""The filter stage: marks which tools want each packet."""
