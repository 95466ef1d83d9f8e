"""Flow records on the control side: exported, stored, asked."""
