"""The filter language on stored flow records: an expression -> SQL. Pure."""
